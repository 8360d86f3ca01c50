"""Functions of a user, and runs that evaluate them, for tests of `train.evaluate`."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from jala_ray.config import RunConfig
from jala_ray.training.evaluating import Moment
from jala_ray.training.trainer import train
from tests.training.run import make_run, run_config

OWN = "tests.training.own_figures"
no_function = 3


def evaluated(root: Path, *names: str, every: int = 2, **values: Any) -> RunConfig:
    return run_config(root, train__evaluate=tuple((f"{OWN}:{name}", every) for name in names), **values)


def all_of_them(root: Path, name: str) -> RunConfig:
    names = ("held_out", "fails_on_one_rank", "fails", "disturbs")
    return evaluated(root, *names, name=name, train__batch=4, train__steps=2)


def one_of_two(rank: int, root: str) -> None:
    """Entry of a spawned process."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{root}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    train(make_run(all_of_them(Path(root), "two"), rank=rank, world=2))
    dist.destroy_process_group()


def disturbs(at: Moment) -> dict[str, float]:
    """All that a careless function may do to a run: draws, modes, gradients."""
    torch.rand(3), np.random.rand(3), random.random()
    at.learner.train()
    batch = at.on_device(at.held_out["lab"][0])
    with torch.enable_grad():
        at.learner(batch).loss.backward()
    return {"draw": torch.rand(()).item(), "grads": sum(p.grad is not None for p in at.learner.parameters())}


def held_out(at: Moment) -> dict[str, tuple[float, float]]:
    """Sums over this rank's held-out batches: of rows, and of the loss."""
    assert not at.learner.training and not torch.is_grad_enabled()
    figures = {}
    for domain, batches in at.held_out.items():
        rows = sum(float(batch.weight.sum()) for batch in batches)
        loss = sum(float(at.learner(at.on_device(batch)).loss) for batch in batches)
        figures |= {f"{domain}/rows": (rows, 1.0 if at.rank == 0 else 0.0), f"{domain}/loss": (loss, rows)}
    return figures


held_out.every_rank = True


def fails(at: Moment) -> dict[str, float]:
    raise ValueError(f"nothing to see\nat step {at.step}")


def fails_on_one_rank(at: Moment) -> dict[str, tuple[float, float]]:
    if at.rank == at.world - 1:
        raise ZeroDivisionError("on one rank")
    return {"x": (1.0, 1.0)}


fails_on_one_rank.every_rank = True


def words(at: Moment) -> dict[str, object]:
    return {"x": "no number"}


def alone(at: Moment) -> dict[str, float]:
    """A plain number of every rank depends on their number."""
    return {"x": 1.0}


alone.every_rank = True
