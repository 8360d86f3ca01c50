"""What would have been executed, each answer until the next one: how late it is, and how it jerks where answers meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jala_ray.policy.openloop.records import POLICY, EpisodeRecord

LAG_S = 1.0
"""Delays that are tried, to both sides."""
CLEARER = 1e-3
"""A delay is told where it correlates better than none by more than this."""
JERK = 3
"""Differences of positions that make a jerk."""


def executed(record: EpisodeRecord, row: str = POLICY) -> tuple[np.ndarray, np.ndarray]:
    """(T, A) each: the first `every` actions of all answers, one answer after another, and the recorded ones at the same steps."""
    there = record.there[:, : record.every].reshape(-1)
    made, truth = (x[:, : record.every].reshape(-1, x.shape[-1])[there] for x in (record.predicted[row], record.truth))
    return made.astype(np.float64), truth


def lag(records: Sequence[EpisodeRecord], spread: np.ndarray) -> dict[str, Any]:
    """The delay at which executed and recorded actions correlate best, all episodes and dimensions together; positive: they come late.

    Episodes that are too short for the largest delay do not count. `spread` (A,): of each dimension, NaN for those that do not. `steps` is
    None where nothing moves.
    """
    rate = records[0].rate_hz
    pairs = [_centred(record, spread) for record in records if len(executed(record)[0])]
    most = min(round(LAG_S * rate), max((len(made) for made, _ in pairs), default=0) // 2)
    pairs = [pair for pair in pairs if len(pair[0]) >= 2 * most]
    known = {steps: _correlation(pairs, steps) for steps in range(-most, most + 1)}
    known = {steps: value for steps, value in known.items() if np.isfinite(value)}
    if 0 not in known:
        return {"steps": None, "ms": None, "correlation": None, "at_no_delay": None}
    best = max(known, key=lambda steps: (known[steps], -abs(steps)))
    if known[best] - known[0] <= CLEARER:
        best = 0
    return {"steps": best, "ms": 1000 * best / rate, "correlation": known[best], "at_no_delay": known[0]}


def _centred(record: EpisodeRecord, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = np.isfinite(spread)
    return tuple((x - x.mean(0))[:, kept] / spread[kept] for x in executed(record))  # pyright: ignore[reportReturnType]


def _correlation(pairs: Sequence[tuple[np.ndarray, np.ndarray]], steps: int) -> float:
    """Of made[t + steps] and truth[t]."""
    sums = np.zeros(3)
    for made, truth in pairs:
        count = len(made) - abs(steps)
        late, early = made[max(steps, 0) :][:count], truth[max(-steps, 0) :][:count]
        sums += [(late * early).sum(), np.square(late).sum(), np.square(early).sum()]
    return float(sums[0] / np.sqrt(sums[1] * sums[2])) if sums[1] > 0 and sums[2] > 0 else np.nan


@dataclass(frozen=True)
class Smoothness:
    """Mean jerk (third difference, relative to the range) of what would be executed, as a multiple of the recording's at the same steps or
    of its mean step, whichever is larger: a recording at constant speed has no jerk at all.
    """

    within: float | None
    """Inside of answers; None where they are too short, or nothing is recorded to move."""
    joints: float | None
    """Across the step from an answer to the next."""


def smoothness(records: Sequence[EpisodeRecord], spread: np.ndarray) -> Smoothness:
    made, truth, pace, count = (np.zeros(2) for _ in range(4))
    for record in records:
        both = executed(record)
        if len(both[0]) <= JERK:
            continue
        first = np.arange(len(both[0]) - JERK)
        across = first // record.every != (first + JERK) // record.every
        for sums, actions in zip((made, truth), both, strict=True):
            jerk = _size(np.diff(actions, n=JERK, axis=0), spread)
            sums += [jerk[~across].sum(), jerk[across].sum()]
        counted = np.array([(~across).sum(), across.sum()])
        count += counted
        pace += counted * _size(np.diff(both[1], axis=0), spread).mean()
    base = np.maximum(truth, pace)
    within, joints = (float(a / b) if n and b > 0 else None for a, b, n in zip(made, base, count, strict=True))
    return Smoothness(within, joints)


def _size(actions: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """(T, A) -> (T,) the sum over dimensions, each relative to its range."""
    return np.nansum(np.abs(actions) / spread, axis=1)
