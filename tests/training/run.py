"""A run over samples in memory, for tests of the loop; also as one of several ranks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from jala_ray.config import JalaConfig, RunConfig
from jala_ray.data.samples.steps import ShareBuilder, StepBuilder
from jala_ray.data.sampling.plan import Plan
from jala_ray.presets import PRESETS
from jala_ray.training import history, setup
from jala_ray.training.costs import PARTS
from jala_ray.training.parallel import parallel
from jala_ray.training.pretraining import Pretraining
from jala_ray.training.trainer import train
from tests.support import MIXED, Kind, MemorySource, OpenMemory, by_number, make_assets, make_learner, small

SAVES = {"save_wait_s", "save_wait", "save_s", "save_gb"}
COSTS = {"tflops_per_s", "mfu", "memory_gb", "straggler", "goodput", *SAVES, *(f"step_s/{part}" for part in PARTS)}
"""Columns that no two runs have in common."""
HELD_OUT = {"lab": 6, "wild": 3}


def run_config(root: Path, preset: str = "tiny", **values: Any) -> RunConfig:
    base: dict[str, Any] = {
        "name": "run",
        "storage__root": str(root),
        "train__steps": 4,
        "train__batch": 6,
        "train__micro_batch": 2,
        "train__log_every": 1,
        "train__checkpoint_every": 2,
        "train__validate_every": 4,
        "train__monitor_every": 2,
        "log__tensorboard": False,
    }
    if isinstance(PRESETS[preset].objective, JalaConfig):
        base["objective__ema__alpha"] = 0.5
    return small(PRESETS[preset], **(base | values))


def make_run(
    config: RunConfig,
    *,
    kinds: Sequence[Kind] = MIXED,
    rows: int = 20,
    bad: frozenset[int] = frozenset(),
    shuffle: bool = True,
    rank: int = 0,
    world: int = 1,
) -> Pretraining:
    assets = make_assets(config)
    source = MemorySource(kinds, assets, bad)

    def builder(indices: np.ndarray, keep_order: bool) -> StepBuilder:
        plan = Plan(by_number(indices), config.train.batch, config.seed, shuffle=not keep_order)
        return StepBuilder(ShareBuilder(config, OpenMemory(source), config.seed), plan)

    training = builder(np.arange(rows), not shuffle)

    def shares(maker: StepBuilder, first: int, last: int):
        return (maker.build(step, rank, world) for step in range(first, last))

    held_out = {d: builder(np.arange(100, 100 + n), True) for d, n in HELD_OUT.items()}
    return Pretraining(
        config=config,
        folder=setup.run_folder(config),
        learner=make_learner(config, assets),
        assets=assets,
        device=torch.device("cpu"),
        total_steps=config.train.steps or 0,
        steps_per_epoch=training.plan.steps_per_epoch,
        shares=lambda first: shares(training, first, config.train.steps or 0),
        validation={d: (lambda b=b: shares(b, 0, b.plan.steps_per_epoch)) for d, b in held_out.items()},
        resume_from=history.newest(setup.run_folder(config), setup.storage_options(config)),
        rank=rank,
        world=world,
        parallel=parallel(config.train, world, torch.device("cpu")),
    )


def one_of_two(rank: int, root: str, kinds: Sequence[Kind]) -> None:
    """Entry of a spawned process: rank `rank` of 2; rank 0 saves the weights of both for comparison."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{root}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=600))
    config = run_config(Path(root), name="two", train__batch=4)
    run = make_run(config, kinds=kinds, rows=len(kinds), shuffle=False, rank=rank, world=2)
    train(run)
    torch.save(run.learner.state_dict(), f"{root}/rank{rank}.pt")
    dist.destroy_process_group()


def stalling(rank: int, root: str, patience_s: float, stall_s: float) -> None:
    """Entry of a spawned process: rank 1 of 2 stands still in the forward pass of the second step's second micro-batch. What a rank says
    goes into `said{rank}`.
    """
    torch.set_num_threads(1)
    store = dist.FileStore(f"{root}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=600))
    config = run_config(Path(root), train__steps=2, train__batch=8, log__waiting_s=patience_s)
    run = make_run(config, rank=rank, world=2)
    passes, whole = 0, run.learner.objective.loss

    def loss(*given: Any) -> Any:
        nonlocal passes
        passes += 1
        if rank == 1 and passes == 4:
            time.sleep(stall_s)
        return whole(*given)

    run.learner.objective.loss = loss  # type: ignore[method-assign]
    with open(f"{root}/said{rank}", "w") as said, contextlib.redirect_stdout(said):
        train(run)
    dist.destroy_process_group()
