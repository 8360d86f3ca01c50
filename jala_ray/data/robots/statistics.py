"""Statistics of robot sets' signals: exact, over all rows of the training episodes, from Parquet columns alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from jala_ray.config import DataConfig
from jala_ray.data.robots.rows import RowReader, readable
from jala_ray.data.robots.sets import RobotSet, RobotSets, rates
from jala_ray.data.robots.split import held_out
from jala_ray.data.samples.signals import QUANTILES, SignalStatistics, Statistics
from jala_ray.types import UserError


def robot_statistics(sets: RobotSets, data: DataConfig, names: Sequence[str], rows: str) -> Statistics:
    """Of every embodiment, by `EMBODIMENT:NAME`; `rows` is the digest of what may be drawn.

    One signal of one embodiment is in memory at a time, as stored. An episode whose rows can't be read is left out; training says why.
    Raises `UserError` where sets of one embodiment differ about a signal's type or shape, and where no value was measured.
    """
    found = {}
    by_body = sorted(sets.sets, key=lambda one: one.embodiment)
    for embodiment, group in groupby(by_body, key=lambda one: one.embodiment):
        members = list(group)
        for name in names:
            found[f"{embodiment}:{name}"] = _of_one(embodiment, name, members, data)
    return Statistics(found, rows, rates(sets))


def _of_one(embodiment: str, name: str, members: Sequence[RobotSet], data: DataConfig) -> SignalStatistics:
    kept, kinds, rows = list[np.ndarray](), dict[tuple[str, tuple[int, ...]], str](), 0
    for one in members:
        for values in _values(one, name, data):
            kinds.setdefault((values.dtype.name, values.shape[1:]), one.name)
            rows += 1
            kept.append(values.reshape(len(values), -1))
    if len(kinds) > 1:
        shown = ", ".join(f"{dtype} {list(shape)} in {where}" for (dtype, shape), where in kinds.items())
        remedy = "Give the sets embodiments of their own in --data.robot-sets, or write their columns alike."
        raise UserError(
            f"signal {name} of {embodiment}", shown, "one dtype and shape in all sets of an embodiment", remedy
        )
    if not sum(map(len, kept)):
        where = ", ".join(one.name for one in members)
        raise UserError(f"signal {name} of {embodiment}", "no value that was measured", f"some in episodes of {where}")
    ((dtype, shape),) = kinds
    return SignalStatistics(dtype, shape, rows, sum(map(len, kept)), **_numbers(kept))


def _values(of: RobotSet, name: str, data: DataConfig) -> Iterator[np.ndarray]:
    """(T, ...) of every training episode, without what was not measured; copies, so that files' other rows are let go."""
    training = np.flatnonzero(~held_out(of, data.held_out_episodes))
    for _, rows in readable(of, training, RowReader([name])):
        signal = rows.signal(of, name)
        yield np.array(signal.values[signal.usable])


def _numbers(kept: Sequence[np.ndarray]) -> dict[str, tuple[float, ...]]:
    """Of arrays (T, D), one dimension at a time."""
    found: dict[str, list[float]] = {name: [] for name in ("min", "max", "mean", "std", *QUANTILES)}
    for dimension in range(kept[0].shape[1]):
        values = np.concatenate([one[:, dimension] for one in kept]).astype(np.float64)
        at = np.quantile(values, list(QUANTILES.values()))
        numbers = {"min": values.min(), "max": values.max(), "mean": values.mean(), "std": values.std()}
        for key, value in (numbers | dict(zip(QUANTILES, at, strict=True))).items():
            found[key].append(float(value))
    return {key: tuple(values) for key, values in found.items()}
