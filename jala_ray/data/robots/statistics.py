"""Statistics of robot sets' signals: exact, over all rows of the training episodes, from Parquet columns alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from jala_ray.config import DataConfig
from jala_ray.data.robots.rows import RowReader, readable
from jala_ray.data.robots.sets import RobotSet, RobotSets, rates
from jala_ray.data.robots.split import held_out
from jala_ray.data.samples.signals import QUANTILES, SignalStatistics, Statistics
from jala_ray.types import UserError


def robot_statistics(sets: RobotSets, data: DataConfig, names: Sequence[str], rows: str) -> Statistics:
    """Of every embodiment, by `EMBODIMENT:NAME`; `rows` is the digest of what may be drawn.

    The signals of one embodiment are in memory at once, as stored. An episode whose rows can't be read is left out; training says why.
    Raises `UserError` where sets of one embodiment differ about a signal's type or shape, and where no value was measured.
    """
    found = {}
    by_body = sorted(sets.sets, key=lambda one: one.embodiment)
    for embodiment, group in groupby(by_body, key=lambda one: one.embodiment):
        kept: dict[str, list[_Measured]] = {name: [] for name in names}
        for one in group:
            for name, measured in _values(one, names, data):
                kept[name].append(measured)
        found |= {f"{embodiment}:{name}": _of_one(f"signal {name} of {embodiment}", kept[name]) for name in names}
    return Statistics(found, rows, rates(sets))


class _Measured(NamedTuple):
    """A signal of one episode."""

    values: np.ndarray
    """(T, ...) without what was not measured."""
    of: str
    """Name of the set."""


def _values(of: RobotSet, names: Sequence[str], data: DataConfig) -> Iterator[tuple[str, _Measured]]:
    """Of every training episode; copies, so that files' other rows are let go."""
    training = np.flatnonzero(~held_out(of, data.held_out_episodes))
    for _, rows in readable(of, training, RowReader(names)):
        for name in names:
            signal = rows.signal(of, name)
            yield name, _Measured(np.array(signal.values[signal.usable]), of.name)


def _of_one(field: str, kept: Sequence[_Measured]) -> SignalStatistics:
    kinds: dict[tuple[str, tuple[int, ...]], str] = {}
    for values, of in kept:
        kinds.setdefault((values.dtype.name, values.shape[1:]), of)
    if len(kinds) > 1:
        shown = ", ".join(f"{dtype} {list(shape)} in {where}" for (dtype, shape), where in kinds.items())
        remedy = "Give the sets embodiments of their own in --data.robot-sets, or write their columns alike."
        raise UserError(field, shown, "one dtype and shape in all sets of an embodiment", remedy)
    count = sum(len(values) for values, _ in kept)
    if not count:
        raise UserError(field, "no value that was measured", "at least one in the training episodes")
    ((dtype, shape),) = kinds
    flat = [values.reshape(len(values), -1) for values, _ in kept if len(values)]
    return SignalStatistics(dtype, shape, len(kept), count, **_numbers(flat))


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
