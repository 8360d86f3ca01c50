"""Pretraining in float64 as one of several processes, started by a test: RANK RANKS FOLDER."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from jala_ray.training.pretraining import Pretraining
from jala_ray.training.trainer import train
from tests.training.run import make_run, run_config

BATCH, STEPS = 4, 24


def exact_run(
    root: Path,
    micro: int,
    steps: int = STEPS,
    preset: str = "tiny",
    settings: dict[str, Any] | None = None,
    **more: Any,
) -> Pretraining:
    """Steps of 4 samples of every task, `micro` of them in a micro-batch; perceivers follow each other."""
    sizes = {
        "train__steps": steps,
        "train__batch": BATCH,
        "train__micro_batch": micro,
        "train__checkpoint_every": steps,
    }
    every = {"train__validate_every": steps, "train__monitor_every": steps}
    run = make_run(run_config(root, preset, **{**sizes, **every, **(settings or {})}), **more)
    run.learner.double()
    for module in run.learner.modules():
        if isinstance(module, Qwen2RMSNorm):
            # The library's goes through float32, where a difference in the 16th digit becomes one in the 8th now and then.
            module.forward = partial(norm_in_double, module)
    return run


def norm_in_double(module: Qwen2RMSNorm, x: Tensor) -> Tensor:
    return module.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon))


def main(rank: int, ranks: int, root: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/meet", rank=rank, world_size=ranks)
    try:
        train(exact_run(root, 1, rank=rank, world=ranks))
    finally:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
