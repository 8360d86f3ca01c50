"""Post-training in float64 as one of several processes, started by a test: RANK RANKS FOLDER."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from jala_ray.training.pretraining import Pretraining
from jala_ray.training.trainer import train
from tests.posttraining.world import flow_config, flow_run
from tests.training.step_ranks import norm_in_double

STEPS = 12


def exact_run(root: Path, micro: int, rank: int = 0, world: int = 1, **values: Any) -> Pretraining:
    """Steps of 4 samples with a picture each, `micro` of them in a micro-batch, with dropout and averaged weights."""
    every = dict.fromkeys(("checkpoint_every", "validate_every", "monitor_every"), STEPS)
    base: dict[str, Any] = {f"train__{name}": value for name, value in (every | {"steps": STEPS}).items()}
    base |= {"train__micro_batch": micro, "train__average": 0.9, "objective__views": ("a",)}
    run = flow_run(flow_config(root, **(base | values)), rank, world)
    for module in run.learner.double().modules():
        if isinstance(module, Qwen2RMSNorm):
            module.forward = partial(norm_in_double, module)
    return run


def main(rank: int, ranks: int, root: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/meet", rank=rank, world_size=ranks)
    try:
        train(exact_run(root, 1, rank, ranks))
    finally:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
