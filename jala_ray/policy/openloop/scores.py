"""Errors of a policy's actions beside trivial ones.

An error is a mean over an episode's moments and steps that were recorded; episodes count alike. The overall error is relative: of each
dimension by its range (quantiles 1 % to 99 % of the training rows), then the mean over dimensions that have one. Differences are paired
by episode, with percentile-bootstrap intervals over episodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jala_ray.data.samples.signals import SignalStatistics
from jala_ray.evaluation.bootstrap import LEVEL, RESAMPLES, estimates
from jala_ray.policy.openloop.records import ASKED, POLICY, EpisodeRecord
from jala_ray.policy.openloop.smoothness import lag, smoothness
from jala_ray.policy.openloop.verdicts import HELD, LAST, MEAN, RULES, TRIVIAL, ZERO, verdicts
from jala_ray.types import UserError

ROWS: Mapping[str, str] = {**ASKED, **TRIVIAL}


@dataclass(frozen=True, eq=False)
class Scale:
    """(A,) each, of actions over training rows, in the robot's units."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, names: Sequence[str], known: Mapping[str, SignalStatistics]) -> Scale:
        return cls(*(np.concatenate([getattr(known[name], key) for name in names]) for key in ("mean", "q01", "q99")))

    @cached_property
    def range(self) -> np.ndarray:
        """NaN where a dimension is constant."""
        spread = self.high - self.low
        return np.where(spread > 1e-8 * np.maximum(1.0, np.abs(self.mean)), spread, np.nan)


@dataclass(frozen=True, eq=False)
class ActionScores:
    """Of E episodes that were read, by row: (E, H, A) mean absolute and mean squared errors, NaN where a row has none, or no step is."""

    records: Sequence[EpisodeRecord]
    scale: Scale
    absolute: Mapping[str, np.ndarray]
    squared: Mapping[str, np.ndarray]

    @property
    def dimensions(self) -> list[str]:
        """Names of an action's numbers."""
        parts = self.records[0].action
        return [f"{name}[{i}]" if width > 1 else name for name, width in parts for i in range(width)]

    def overall(self, row: str) -> np.ndarray:
        """(E,) relative errors."""
        by_dimension = _mean(self.absolute[row] / self.scale.range, 1)
        return _mean(by_dimension, 1)

    def gain(self, row: str) -> np.ndarray:
        """(E,) by how much the row's relative error is above the policy's."""
        return self.overall(row) - self.overall(POLICY)


def score(records: Sequence[EpisodeRecord], known: Mapping[str, SignalStatistics]) -> ActionScores:
    """Raises `UserError` where no episode was read."""
    read = [record for record in records if record.failure is None and record.there.any()]
    if not read:
        first = next((record.failure for record in records if record.failure), "no moment has an action")
        raise UserError("episodes compared", 0, "at least one", f"The first: {first}")
    scale = Scale.of([name for name, _ in read[0].action], known)
    off = [_off(record, scale) for record in read]
    rows = [row for row in ROWS if any(row in one for one in off)]
    return ActionScores(read, scale, *({row: _by_episode(row, off, read, power) for row in rows} for power in (1, 2)))


def _by_episode(
    row: str, off: Sequence[Mapping[str, np.ndarray]], read: Sequence[EpisodeRecord], power: int
) -> np.ndarray:
    """(E, H, A) mean over the moments at which a step was recorded; NaN for an episode without the row."""
    nothing = np.full(read[0].truth.shape[1:], np.nan)
    return np.stack(
        [_over(one[row], record, power) if row in one else nothing for one, record in zip(off, read, strict=True)]
    )


def _off(record: EpisodeRecord, scale: Scale) -> dict[str, np.ndarray]:
    """By row, predicted less true (n, H, A)."""
    steps = (len(record.times_s), record.truth.shape[1], record.truth.shape[2])
    trivial = {MEAN: scale.mean[None], LAST: record.last, ZERO: np.zeros((1, steps[2]))}
    if record.held.shape[1]:
        trivial[HELD] = record.held
    rows = {name: np.broadcast_to(values[:, None], steps) for name, values in trivial.items()}
    return {name: values - record.truth for name, values in (dict(record.predicted) | rows).items()}


def _over(off: np.ndarray, record: EpisodeRecord, power: int) -> np.ndarray:
    """(H, A) of predicted less true."""
    return _mean(np.where(record.there[:, :, None], np.abs(off) ** power, np.nan), 0)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Without NaN; NaN where there is nothing else."""
    there = ~np.isnan(values)
    total, count = np.where(there, values, 0.0).sum(axis), there.sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def summarise(scores: ActionScores, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """All figures of the report, as JSON has them: None for what is not known."""
    rows = list(scores.absolute)
    columns = [scores.overall(row) for row in rows] + [scores.gain(row) for row in rows]
    steps = np.array([int(record.there.sum()) for record in scores.records])
    found = estimates(np.stack(columns, 1), steps, resamples=resamples, seed=seed)
    errors, gains = dict(zip(rows, found, strict=False)), dict(zip(rows, found[len(rows) :], strict=True))
    smooth = smoothness(scores.records, scores.scale.range)
    late = lag(scores.records, scores.scale.range)
    figures: dict[str, Any] = {
        "episodes": len(scores.records),
        "moments": sum(len(record.times_s) for record in scores.records),
        "steps": int(steps.sum()),
        "tasks": len({task for record in scores.records for task in record.tasks}),
        "every": scores.records[0].every,
        "rate_hz": scores.records[0].rate_hz,
        "level": LEVEL,
        "resamples": resamples,
        "dimensions": scores.dimensions,
        "range": scores.scale.range.tolist(),
        "rows": {row: _row(scores, row) | {"error": vars(errors[row])} for row in rows},
        "gains": {row: vars(gains[row]) for row in rows if row != POLICY},
        "motion": motion(scores),
        "lag": late,
        "smoothness": vars(smooth),
        "verdicts": [
            {"check": name, "rule": RULES[name], **vars(verdict)}
            for name, verdict in verdicts(gains, motion(scores), late, smooth).items()
        ],
    }
    return _plain(figures)


def _row(scores: ActionScores, row: str) -> dict[str, Any]:
    """By dimension in the robot's units, and by step relative to the range."""
    absolute, squared = scores.absolute[row], scores.squared[row]
    mae = _mean(_mean(absolute, 1), 0)
    rmse = np.sqrt(_mean(_mean(squared, 1), 0))
    by_step = _mean(_mean(absolute / scores.scale.range, 2), 0)
    relative = mae / scores.scale.range
    return {"mae": mae.tolist(), "rmse": rmse.tolist(), "relative": relative.tolist(), "by_step": by_step.tolist()}


def motion(scores: ActionScores) -> float:
    """How far predicted actions go from an answer's first one, as a share of how far the recorded ones go."""
    sums = np.zeros(2)
    for record in scores.records:
        for i, actions in enumerate((record.predicted[POLICY], record.truth)):
            gone = np.abs(actions - actions[:, :1]) / scores.scale.range
            sums[i] += np.nansum(np.where(record.there[:, :, None], gone, np.nan))
    return float(sums[0] / sums[1]) if sums[1] > 0 else math.nan


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
