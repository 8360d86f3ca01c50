"""A trial that takes more memory than its node has: Ray ends it, the others go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from jala_ray.sweeps.driver import Report, run
from tests.ray_start import local_ray
from tests.sweeps.formula import Bowl, best_place, bowl_sweep

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]
ROOM, HUNGER, PIECE = 3 * 2**30, 6 * 2**30, 2**28
"""Bytes that the node lets its tasks take beyond what is used, that the trial takes at most, and takes at a time."""


def eat() -> int:
    return len([np.ones(PIECE, np.uint8) for _ in range(HUNGER // PIECE)])


@dataclass(frozen=True)
class Hungry:
    """A trial whose worker, a process of its own as a run's workers are, takes the memory."""

    bowl: Bowl

    def __call__(self, number: int, values: Mapping[str, Any], report: Report) -> None:
        if number == 1:
            eaten = ray.get(ray.remote(eat).options(num_cpus=0, max_retries=0).remote())
            raise AssertionError(f"{eaten} pieces fitted")
        self.bowl(number, values, report)


def test_it_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()
    if memory.available < 2 * HUNGER:
        pytest.skip(f"too little memory is free to waste {HUNGER >> 30} GiB")
    limit = (memory.total - memory.available + ROOM) / memory.total
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{limit:.3f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    with local_ray():
        ledger = run(bowl_sweep(tmp_path, Hungry(Bowl(best_place(0))), count=4, halving=False, waves=False))
    assert [record.state for record in ledger] == ["done", "failed", "done", "done"]
    assert "memory" in (ledger.records[1].reason or "").lower(), ledger.records[1].reason
