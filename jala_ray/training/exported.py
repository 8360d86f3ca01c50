"""A run's figures as metrics of Ray, which every node's agent exports to Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.util.metrics import Counter, Gauge

from jala_ray.config import AnyRun
from jala_ray.training.gauges import ALL, RUN_TAG, RunGauges

Committed = Callable[[dict[str, Any], str], None]


def run_gauges(config: AnyRun, planned: int, log_every: int, checkpoint_every: int) -> RunGauges:
    """Of this process, which must be a worker of Ray; `planned` is the run's last step."""
    tags = {RUN_TAG: config.name}
    kinds = {"gauge": Gauge, "counter": Counter}
    made = {m.name: kinds[m.kind](m.name, description=m.meaning, tag_keys=(RUN_TAG,)) for m in ALL}

    def gauge(name: str, value: float) -> None:
        made[name].set(value, tags)

    def count(name: str, value: float) -> None:
        made[name].inc(value, tags)

    return RunGauges(planned, log_every, checkpoint_every, gauge, count)


def noting(committed: Committed, gauges: RunGauges | None) -> Committed:
    """`committed`, of which the gauges hear too."""
    if gauges is None:
        return committed

    def both(row: dict[str, Any], address: str) -> None:
        committed(row, address)
        gauges.saved()

    return both
