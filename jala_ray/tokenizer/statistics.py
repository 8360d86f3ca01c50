"""Mean and standard deviation of features over any number of sources, merged exactly (method.md 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jala_ray.types import FEATURE_DIM, UserError

STD_FLOOR = 1e-2
"""Smallest std a feature is divided by: 1 cm, or 0.01 of a rotation matrix entry (about 0.6 degrees). A
feature that moves less carries noise, which a smaller divisor would blow up to the weight of real motion."""


@dataclass(frozen=True)
class FeatureStats:
    """Count, mean and sum of squared deviations (M2) of the frames seen, float64; `+` merges two exactly.

    Pairwise update of Chan, Golub and LeVeque (1979), so that workers and sources can be merged in any order.
    """

    count: int
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def empty(cls, dim: int = FEATURE_DIM) -> FeatureStats:
        return cls(0, np.zeros(dim), np.zeros(dim))

    @classmethod
    def of(cls, features: np.ndarray) -> FeatureStats:
        """Statistics of an array (..., D) over its leading axes; raises UserError when a value is not
        finite."""
        rows = np.asarray(features, np.float64).reshape(-1, np.shape(features)[-1])
        if not len(rows):
            return cls.empty(rows.shape[1])
        bad = ~np.isfinite(rows).all(axis=0)
        if bad.any():
            raise UserError("features", f"not finite in dimensions {np.flatnonzero(bad)[:5]}", "finite numbers")
        mean = rows.mean(axis=0)
        return cls(len(rows), mean, np.square(rows - mean).sum(axis=0))

    def __add__(self, other: FeatureStats) -> FeatureStats:
        if self.mean.shape != other.mean.shape:
            raise UserError("statistics", other.mean.shape, f"the same features, {self.mean.shape}")
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + np.square(delta) * (self.count * other.count / count)
        return FeatureStats(count, mean, m2)

    def std(self, floor: float = STD_FLOOR) -> np.ndarray:
        """Population standard deviation (D,), at least `floor`; raises UserError when nothing was seen."""
        if not self.count:
            raise UserError("statistics", "no frames", "at least one labelled frame", "Is any hand labelled?")
        return np.maximum(np.sqrt(self.m2 / self.count), floor)
