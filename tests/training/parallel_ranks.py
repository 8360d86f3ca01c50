"""One process of several that share a model, one run after another, started by a test: RANK RANKS FOLDER NAME:KIND ..."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jala_ray.training.pretraining import Pretraining
from jala_ray.training.trainer import train
from tests.posttraining.ranks import exact_run as flow_run
from tests.training.saving_ranks import CutOffError, cut_off
from tests.training.step_ranks import BATCH, exact_run

STEPS, FEW, THIRD = 24, 3, 8
KINDS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"train__parallel": "fsdp"},
    "reshard": {"train__parallel": "fsdp", "train__reshard": True},
}
WHOLE: dict[str, Any] = {"model__backbone__freeze_vision": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "jala": {"train__average": 0.9, "train__monitor_every": 6, "train__validate_every": 6},
    "lora": {"model__backbone__lora__rank": 4},
    "tower": WHOLE,
    "fewer": {**WHOLE, "train__batch": BATCH // 2, "model__backbone__gradient_checkpointing": True},
}


def run_of(root: Path, name: str, micro: int = BATCH, rank: int = 0, world: int = 1, **kind: Any) -> Pretraining:
    """In float64; `flow` with an action head, dropout and averaged weights."""
    if name == "flow":
        return flow_run(root, micro, rank, world, **kind)
    steps = STEPS if name == "jala" else FEW
    return exact_run(root, micro, steps, settings=SETTINGS[name] | kind, rank=rank, world=world)


def stopped(run: Pretraining) -> None:
    """Up to the next checkpoint."""
    run.committed = cut_off
    try:
        train(run)
    except CutOffError:
        return
    raise AssertionError("no checkpoint was told of")


def main(rank: int, ranks: int, root: Path, jobs: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/meet", rank=rank, world_size=ranks)
    try:
        for job in jobs:
            name, kind = job.split(":")
            settings = dict(KINDS[kind.removesuffix("-part")])
            if kind.endswith("-part"):
                stopped(run_of(root / name, "jala", 1, rank, ranks, train__checkpoint_every=THIRD, **settings))
            else:
                train(run_of(root / job, name, 1, rank, ranks, **settings))
    finally:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
