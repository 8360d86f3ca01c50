"""Trials of a closed form, for tests of the driver: a bowl over a space of three settings, known at every step."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jala_ray.storage import StorageOptions
from jala_ray.sweeps.domains import Domain, Range
from jala_ray.sweeps.driver import Report, Sweep
from jala_ray.sweeps.halving import Halving
from jala_ray.sweeps.metrics import METRICS
from jala_ray.sweeps.search import Method, Strategy

SPACE: dict[str, Domain] = {
    "weight": Range("log", 0.05, 5.0),
    "alpha": Range("one_minus_log", 1e-3, 1e-1),
    "layer": Range("integer", 1, 28),
}
METRIC = METRICS["masked_loss"]
STEPS, EVERY = 27, 3
GOOD_SHARE = 0.02
"""Of the space's volume is in the good region, a ball in the unit cube."""
GOOD_RADIUS = (3 * GOOD_SHARE / (4 * np.pi)) ** (1 / 3)


@dataclass(frozen=True)
class Bowl:
    """Distance to the best place in the unit cube; a trial comes nearer to it step by step."""

    best: tuple[float, ...]
    domains: Mapping[str, Domain] = field(default_factory=lambda: SPACE)
    steps: int = STEPS
    every: int = EVERY
    log: Path | None = None
    """A line for every start of a trial."""
    faults: Mapping[int, str] = field(default_factory=dict)
    """Trial -> what goes wrong in it: raises, nan, killed, silent."""
    pause_s: float = 0.0

    def distance(self, values: Mapping[str, Any]) -> float:
        place = [domain.unit(values[key]) for key, domain in self.domains.items()]
        return float(np.linalg.norm(np.subtract(place, self.best)))

    def row(self, values: Mapping[str, Any], step: int) -> dict[str, Any]:
        value = self.distance(values) + 1.0 * (1 - step / self.steps)
        return {"step": step, "val/lab/loss_mcp": value, "val/wild/loss_mcp": value}

    def __call__(self, number: int, values: Mapping[str, Any], report: Report) -> None:
        if self.log is not None:
            with self.log.open("a") as lines:
                lines.write(f"{number}\n")
        fault = self.faults.get(number)
        for step in range(self.every, self.steps + 1, self.every):
            time.sleep(self.pause_s)
            row = self.row(values, step)
            if fault == "raises" and step > self.every:
                raise ValueError(f"trial {number} is broken on purpose")
            if fault == "killed" and step > self.every:
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "nan":
                row |= {"val/lab/loss_mcp": float("nan")}
            if fault == "silent":
                row = {"step": step}
            report(row)


def bowl_sweep(
    folder: Path,
    trials: Callable[..., None],
    *,
    count: int,
    method: Method = "tpe",
    seed: int = 0,
    halving: bool = True,
    concurrent: int = 2,
    waves: bool = True,
) -> Sweep:
    return Sweep(
        folder=str(folder),
        options=StorageOptions(),
        trials=trials,
        domains=SPACE,
        metrics=(METRIC,),
        strategy=Strategy(method, seed, count),
        halving=Halving(METRIC, EVERY, STEPS) if halving else None,
        concurrent=concurrent,
        waves=waves,
    )


def best_place(seed: int) -> tuple[float, ...]:
    """Where a seed's bowl has its bottom: the ball around it is inside the cube."""
    return tuple(np.random.default_rng((7, seed)).uniform(GOOD_RADIUS, 1 - GOOD_RADIUS, len(SPACE)).tolist())
