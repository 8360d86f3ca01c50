"""Which episodes are held out, and which frames at an episode's ends are idle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from jala_ray.data.robots.columns import Column
from jala_ray.data.robots.modality import WHOLE
from jala_ray.data.robots.recent import Recent
from jala_ray.data.robots.rows import EpisodeRows, RowReader, readable
from jala_ray.data.robots.sets import RobotSet
from jala_ray.types import ConfigError


def held_out(of: RobotSet, share: float) -> np.ndarray:
    """(E,) bool: the `share` of episodes with the lowest hashes of folder's name and number, of two or more at least one, never all.

    Episodes of a smaller share are among those of a larger one, and neither seeds nor other sets matter.
    """
    numbers, name = of.episodes.number.tolist(), of.base.rpartition("/")[2]
    hashed = np.array([_hash(f"{name}/{number}") for number in numbers], np.uint64)
    count = min(max(1, round(share * len(numbers))), len(numbers) - 1) if share > 0 else 0
    chosen = np.zeros(len(numbers), bool)
    chosen[np.argsort(hashed, kind="stable")[:count]] = True
    return chosen


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


_SPANS = Recent(64 * 2**20)
"""A run's start asks more than once."""


def spans(of: RobotSet, share: float) -> np.ndarray:
    """(E, 2) int64: first frame that is not idle and the end of those, of every episode; all of it where nothing moves, and where its rows
    can't be read, which training says. Reads state and action of all rows. Raises `ConfigError` for a set without both.
    """
    if share <= 0:
        return np.stack([np.zeros(len(of.episodes), np.int64), of.episodes.length], axis=1)
    return _SPANS.get((of.base, of.digest, share), lambda: _spans(of, share), lambda found: found.nbytes)


def _spans(of: RobotSet, share: float) -> np.ndarray:
    columns = [name for name in WHOLE.values() if name in of.info.signals]
    if not columns:
        remedy = f"{of.base} has {', '.join(of.info.signals) or 'no numbers'}: leave data.trim_idle at 0."
        raise ConfigError("data.trim_idle", share, f"sets with {' or '.join(WHOLE.values())}", remedy)
    every, reader = np.arange(len(of.episodes)), RowReader(columns)
    low, high = _range(rows for _, rows in readable(of, every, reader))
    found = spans(of, 0)
    for place, rows in readable(of, every, reader):
        found[place] = moving(joined_columns(rows), share * (high - low))
    return found


def moving(values: np.ndarray, least: np.ndarray) -> tuple[int, int]:
    """(T, D) and (D,) -> the frames from the last one before anything has moved by more than `least` to the first one after which nothing
    does.
    """
    from_first = (np.abs(values - values[0]) > least).any(1)
    from_last = (np.abs(values - values[-1]) > least).any(1)
    if not from_first.any():
        return 0, len(values)
    first, last = int(from_first.argmax()) - 1, len(values) - int(from_last[::-1].argmax())
    return first, min(last + 1, len(values))


def joined_columns(rows: EpisodeRows) -> np.ndarray:
    """(T, D) float64 of all its columns; what was not measured is as the value before."""
    return np.concatenate([_filled(column) for column in rows.columns.values()], axis=1)


def _filled(column: Column) -> np.ndarray:
    values = column.values.reshape(len(column.values), -1).astype(np.float64)
    if column.valid is None:
        return values
    last = np.maximum.accumulate(np.where(column.valid, np.arange(len(values)), -1))
    return np.where((last >= 0)[:, None], values[np.maximum(last, 0)], 0.0)


def _range(episodes: Iterable[EpisodeRows]) -> tuple[np.ndarray, np.ndarray]:
    """(D,) each: least and largest value."""
    low, high = np.zeros(0), np.zeros(0)
    for rows in episodes:
        values = joined_columns(rows)
        low = np.minimum(low, values.min(0)) if len(low) else values.min(0)
        high = np.maximum(high, values.max(0)) if len(high) else values.max(0)
    return low, high
