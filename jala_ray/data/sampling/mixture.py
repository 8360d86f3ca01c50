"""Mixture weights (method.md 4): how many rows of each cell, (source, task type), an epoch holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jala_ray.config import DataConfig
from jala_ray.parsing import suggest
from jala_ray.types import ConfigError

SWEEPS, EXACT = 10_000, 1e-9


def cell_shares(cells: Sequence[tuple[str, str]], sizes: np.ndarray, data: DataConfig) -> np.ndarray:
    """(C,) the share of every cell in an epoch; `sizes` (C,) its rows.

    Without weights cells have the shares of their rows. `data.source_weights` and `data.task_weights`, normalised, fix the shares of
    the sources and of the task types; between them, cells keep the proportions of their rows as far as that allows (iterative
    proportional fitting). Raises `ConfigError` for a source or task type without a weight, a name that no row has, or
    weights that cannot be met together.
    """
    shares = sizes / sizes.sum()
    goals = [
        _goal("data.source_weights", data.source_weights, [source for source, _ in cells]),
        _goal("data.task_weights", data.task_weights, [task for _, task in cells]),
    ]
    axes = [(goal, group) for goal in goals if goal is not None for group in [_groups(goal, cells, goals.index(goal))]]
    for _ in range(SWEEPS if axes else 0):
        worst = 0.0
        for goal, group in axes:
            sums = np.bincount(group, shares, len(goal))
            wanted = np.array(list(goal.values()))
            worst = max(worst, float(np.abs(sums - wanted).max()))
            factors = np.divide(wanted, sums, out=np.zeros_like(wanted), where=sums > 0)
            shares = shares * factors[group]
        if worst < EXACT:
            return shares
    if axes:
        raise ConfigError(
            "data.source_weights and data.task_weights",
            (dict(data.source_weights), dict(data.task_weights)),
            f"shares that the cells {sorted(set(cells))} can have together",
            "A source whose rows are all of one task type forces that type's share: give weights of one of the two only.",
        )
    return shares


def _goal(field: str, weights: Sequence[tuple[str, float]], present: Sequence[str]) -> dict[str, float] | None:
    """Normalised shares by name, or None without weights."""
    if not weights:
        return None
    given = dict(weights)
    for name in given:
        if name not in present:
            raise ConfigError(field, name, "a name that rows of the manifest have", suggest(name, set(present)))
    for name in sorted(set(present)):
        if name not in given:
            raise ConfigError(field, sorted(given), f"a weight for {name!r} too", "Weight 0 leaves it out.")
    if not all(math.isfinite(w) and w >= 0 for w in given.values()) or not sum(given.values()):
        raise ConfigError(field, given, "weights >= 0, not all 0")
    total = sum(given.values())
    return {name: weight / total for name, weight in given.items()}


def _groups(goal: dict[str, float], cells: Sequence[tuple[str, str]], axis: int) -> np.ndarray:
    """(C,) place in `goal` of each cell's source (axis 0) or task type (axis 1)."""
    order = {name: i for i, name in enumerate(goal)}
    return np.array([order[cell[axis]] for cell in cells])


def apportion(shares: np.ndarray, length: int) -> np.ndarray:
    """(C,) whole numbers with sum `length`, as near to the shares as can be (largest remainders)."""
    exact = shares / shares.sum() * length
    counts = np.floor(exact).astype(np.int64)
    rest = np.argsort(counts - exact, kind="stable")[: length - counts.sum()]
    counts[rest] += 1
    return counts
