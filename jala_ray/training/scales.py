"""Statistics of the signals that a run reads, which fix the scale in which it learns them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from jala_ray.config import RunConfig
from jala_ray.data.samples.flow_recipe import FlowRecipe
from jala_ray.data.samples.recipe import recipe_of
from jala_ray.data.samples.replay import Replay, replays
from jala_ray.data.samples.signals import SignalStatistics, Statistics
from jala_ray.data.samples.source import Sample
from jala_ray.types import Signal

if TYPE_CHECKING:
    from jala_ray.data.samples.assets import Assets
    from jala_ray.training.setup import Plans

STATISTICS_ROWS = 4096
"""Training rows that signals' statistics are of, at most; all, where there are no more."""
STATISTICS_SALT = 0x51A7
STATISTICS_AT_ONCE = 64
REPLAY_ROWS = (256, 4096)
"""Training rows of which values are kept for a policy's proof; more where a robot is not among the first."""
REPLAY_SALT = 0x5EA1


def measured(config: RunConfig, assets: Assets, ready: Plans) -> Assets:
    """With the statistics of what the objective reads and, of a policy, values of training rows to prove them by. Raises `UserError`."""
    assets = replace(assets, statistics=signal_statistics(config, ready))
    recipe = recipe_of(config, assets)
    return replace(assets, replays=_replays(recipe, ready)) if isinstance(recipe, FlowRecipe) else assets


def _replays(recipe: FlowRecipe, ready: Plans) -> dict[str, Replay]:
    found, source = dict[str, Replay](), ready.train.builder.source
    for count in REPLAY_ROWS:
        rows = ready.train.plan.sample(count, REPLAY_SALT)
        read = zip(rows, source.samples(rows), strict=True)
        found = replays(recipe, [(row, sample) for row, sample in read if isinstance(sample, Sample)])
        if found.keys() >= set(recipe.robots):
            break
    return found


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
