"""Pretraining in float64 as one of several processes, started by a test: RANK RANKS FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jala_ray.training.pretraining import Pretraining
from jala_ray.training.trainer import train
from tests.training.run import make_run, run_config

BATCH, STEPS = 4, 24


def exact_run(root: Path, micro: int, **more: Any) -> Pretraining:
    """24 steps of 4 samples of every task, `micro` of them in a micro-batch; perceivers follow each other."""
    sizes = {
        "train__steps": STEPS,
        "train__batch": BATCH,
        "train__micro_batch": micro,
        "train__checkpoint_every": STEPS,
    }
    every = {"train__validate_every": STEPS, "train__monitor_every": STEPS}
    run = make_run(run_config(root, **sizes, **every), **more)
    run.learner.double()
    return run


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
