"""One process of several that share a model, started by a test: RANK RANKS FOLDER KIND, KIND as in `RUNS`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jala_ray.training.trainer import train
from tests.training.step_ranks import STEPS, exact_run

LEARNS_ALL = {"model__backbone__freeze_vision": False}
RUNS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "jala": ("tiny", 2, {"train__average": 0.9}),
    "tower": ("tiny", 1, LEARNS_ALL),
    "lora": ("tiny", 2, {"model__backbone__lora__rank": 4}),
    "again": ("tiny", 1, {"model__backbone__gradient_checkpointing": True}),
}
"""Preset, samples of a micro-batch, settings."""


def run_of(root: Path, name: str, *, rank: int = 0, world: int = 1, steps: int = STEPS, **settings: Any) -> Any:
    preset, micro, own = RUNS[name]
    return exact_run(root, micro, steps, preset, own | settings, rank=rank, world=world)


def main(rank: int, ranks: int, root: Path, name: str, parallel: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/meet-{parallel}", rank=rank, world_size=ranks)
    try:
        reshard = parallel == "reshard"
        settings = {"train__parallel": "fsdp" if reshard else parallel, "train__reshard": reshard}
        train(run_of(root, name, rank=rank, world=ranks, **settings))
    finally:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
