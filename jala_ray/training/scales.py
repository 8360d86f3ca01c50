"""Statistics of the signals that a run reads, which fix the scale in which it learns them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jala_ray.config import RunConfig
from jala_ray.data.samples.signals import SignalStatistics, Statistics
from jala_ray.data.samples.source import Sample
from jala_ray.types import Signal

if TYPE_CHECKING:
    from jala_ray.training.setup import Plans

STATISTICS_ROWS = 4096
"""Training rows that signals' statistics are of, at most; all, where there are no more."""
STATISTICS_SALT = 0x51A7
STATISTICS_AT_ONCE = 64


def signal_statistics(config: RunConfig, ready: Plans) -> Statistics:
    """Of the signals that the objective reads, over a keyed random part of a manifest's training rows, or over all of robot sets' training
    episodes. Reads no video.

    A row that cannot be read is left out; training says why. Raises `UserError` where no row has a signal, or rows disagree about one.
    """
    if config.data.robot_sets:
        from jala_ray.data.robots.sets import open_sets
        from jala_ray.data.robots.statistics import robot_statistics
        from jala_ray.training.setup import storage_options

        sets = open_sets(config.data.robot_sets, storage_options(config))
        return robot_statistics(sets, config.data, config.objective.signals, ready.train.plan.catalogue.digest())
    builder, plan = ready.train.builder, ready.train.plan
    found: dict[str, list[Signal]] = {name: [] for name in config.objective.signals}
    rows = plan.sample(STATISTICS_ROWS, STATISTICS_SALT)
    for first in range(0, len(rows), STATISTICS_AT_ONCE):
        for sample in builder.source.samples(rows[first : first + STATISTICS_AT_ONCE]):
            for name in found:
                if isinstance(sample, Sample) and name in sample.signals:
                    found[name].append(sample.signals[name])
    of = {name: SignalStatistics.of(name, signals) for name, signals in found.items()}
    return Statistics(of, plan.catalogue.digest())
