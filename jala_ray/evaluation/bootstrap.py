"""Means over clips with percentile-bootstrap intervals: plain, by columns, and nested over training seeds and clips."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jala_ray.types import UserError

LEVEL = 0.95
RESAMPLES = 2000
_BLOCK = 1 << 21
"""Weights of a bootstrap held at a time."""


@dataclass(frozen=True)
class Interval:
    """A mean over clips, with its percentile-bootstrap interval at `LEVEL`; NaN limits for fewer than two different clips."""

    mean: float
    low: float
    high: float
    clips: int
    """Records that have a value."""


@dataclass(frozen=True)
class Estimate(Interval):
    frames: int
    """Valid frames of those clips, each hand counted."""


def bootstrap(
    values: np.ndarray, units: np.ndarray | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Means (resamples, K) of values (n, K), finite, n >= 1, over units drawn with replacement, the same draw for all columns.

    units (n,): rows with one label are drawn together; by default each row is drawn by itself. Raises UserError for resamples < 1.
    """
    if resamples < 1:
        raise UserError("resamples", resamples, "1 or more")
    unit = np.arange(len(values)) if units is None else np.unique(units, return_inverse=True)[1]
    counts = np.bincount(unit)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, unit, values)
    drawn = _draws(len(counts), resamples, np.random.default_rng(seed))
    return np.concatenate([weights @ sums / (weights @ counts)[:, None] for weights in drawn])


def estimates(
    values: np.ndarray,
    frames: np.ndarray,
    units: np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Estimate]:
    """Mean and interval of every column of values (n, K) over the clips in which it is not NaN; frames (n,), units as in `bootstrap`."""
    values, units = np.asarray(values, float), np.arange(len(values)) if units is None else units
    known = ~np.isnan(values)
    alike: dict[bytes, list[int]] = {}  # columns known in the same clips share their draws
    for k in range(values.shape[1]):
        alike.setdefault(known[:, k].tobytes(), []).append(k)
    found = dict.fromkeys(range(values.shape[1]), Estimate(math.nan, math.nan, math.nan, 0, 0))
    for columns in alike.values():
        kept = known[:, columns[0]]
        if not kept.any():
            continue
        some = values[np.ix_(kept, np.array(columns))]
        draws = bootstrap(some, units[kept], resamples=resamples, seed=seed)
        low, high = _limits(draws, units[kept])
        for k, *numbers in zip(columns, some.mean(0).tolist(), low.tolist(), high.tolist(), strict=True):
            found[k] = Estimate(*numbers, clips=int(kept.sum()), frames=int(frames[kept].sum()))
    return list(found.values())


def nested(
    scores: np.ndarray,
    minus: np.ndarray | None = None,
    *,
    units: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of scores (seeds, clips), less that of `minus` (seeds', clips) where given, with an interval over training seeds and clips.

    Seeds are drawn with replacement, then clips. Column c is the same clip everywhere, so one draw of clips serves all seeds and both
    arrays: drawn anew for each seed, the clips' own difficulty would average out and the interval be too narrow. Seeds of the two arrays
    are drawn independently; for runs paired by seed pass the array of differences. With one seed this is the plain bootstrap, and the
    interval knows nothing of seeds; with S seeds it shows about (S - 1) / S of their variance. units (clips,) as in `bootstrap`.

    A clip that is NaN for every seed is left out. Raises UserError for one that is NaN for some, and for other shapes.
    """
    arrays = [np.asarray(array, float) for array in ((scores,) if minus is None else (scores, minus))]
    for array in arrays:
        if array.ndim != 2 or not len(array) or array.shape[1] != arrays[0].shape[1]:
            expected = "arrays (seeds, clips) of one or more seeds and the same clips"
            raise UserError("scores", [a.shape for a in arrays], expected)
    stacked = np.concatenate(arrays)
    missing = np.asarray(np.isnan(stacked))
    kept = np.asarray(~missing.all(0))
    if missing[:, kept].any():
        clips = np.flatnonzero(missing.any(0) & kept).tolist()
        raise UserError("scores", f"NaN for some seeds at clips {clips}", "the same clips for every seed")
    if not kept.any():
        return Interval(math.nan, math.nan, math.nan, 0)
    labels = (np.arange(len(kept)) if units is None else units)[kept]
    by_seed = bootstrap(stacked[:, kept].T, labels, resamples=resamples, seed=seed)
    rng = np.random.default_rng((seed, 1))
    draws, mean, first = np.zeros(resamples), 0.0, 0
    for sign, array in zip((1, -1), arrays, strict=False):
        drawn = first + rng.integers(len(array), size=(resamples, len(array)))
        draws += sign * np.take_along_axis(by_seed, drawn, 1).mean(1)
        mean += sign * float(array[:, kept].mean())
        first += len(array)
    low, high = _limits(draws[:, None], labels)
    return Interval(mean, float(low[0]), float(high[0]), int(kept.sum()))


def _draws(units: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each unit is drawn (b, units), over `resamples` lines in all."""
    block = max(1, _BLOCK // units)
    for start in range(0, resamples, block):
        lines = min(block, resamples - start)
        drawn = rng.integers(units, size=(lines, units)) + units * np.arange(lines)[:, None]
        yield np.bincount(drawn.ravel(), minlength=lines * units).reshape(lines, units).astype(float)


def _limits(draws: np.ndarray, units: np.ndarray) -> np.ndarray:
    """(2, K) limits of the interval of draws (resamples, K)."""
    if len(np.unique(units)) < 2:
        return np.full((2, draws.shape[1]), math.nan)
    return np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
