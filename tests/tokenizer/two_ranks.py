"""One rank of a two-process training, started by a test: RANK RENDEZVOUS_FILE START_STATE OUTPUT."""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from jala_ray.tokenizer.model import MotionTokenizer, TokenizerConfig
from jala_ray.tokenizer.training import TokenizerLearner, TokenizerTrainConfig, build_optimizer, train_step

CONFIG = TokenizerConfig(width=16, levels=2, codes=16, decay=0.9)
TRAIN = TokenizerTrainConfig(steps=4, batch=16, lr=1e-3, warmup=0.0)


def main(rank: int, rendezvous: str, start: str, output: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    given = torch.load(start)
    results = {}
    for name, config in (("resumed", replace(CONFIG, dead_code_threshold=0.0)), ("fresh", CONFIG)):
        torch.manual_seed(rank)  # ranks draw different dead-code and k-means samples
        learner = TokenizerLearner(MotionTokenizer(config), TRAIN.batch)
        if name == "resumed":
            learner.load_state_dict(given["state"])
        model = DistributedDataParallel(learner, broadcast_buffers=False)
        optimizer = build_optimizer(model, TRAIN)
        for step, features in enumerate(given["features"]):
            train_step(model, optimizer, {"features": features[rank::2]}, step, TRAIN)
        results[name] = learner.export().state_dict()
    torch.save(results, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
