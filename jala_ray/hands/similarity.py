"""Similarities between sets of points, and the checks of joints that metrics share. Numpy, float64 inside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jala_ray.types import UserError

_POINT = 1e-12
"""Below this share of their distance from the origin, the spread of points is float64 rounding: they are one point."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """F maps p -> scale * rotation p + translation."""

    scale: np.ndarray
    """(F,), 0 or more."""
    rotation: np.ndarray
    """(F, 3, 3), determinant +1."""
    translation: np.ndarray
    """(F, 3), metres."""

    def apply(self, points: np.ndarray) -> np.ndarray:
        """(F, J, 3) -> (F, J, 3)."""
        turned = points @ np.swapaxes(self.rotation, 1, 2)
        return self.scale[:, None, None] * turned + self.translation[:, None]


def procrustes(x: np.ndarray, y: np.ndarray) -> Similarity:
    """The similarity of each frame that brings x (F, J, 3) nearest to y (F, J, 3) in the sum of squares.

    Closed form by SVD (Umeyama 1991), without reflection. Where all points of x or of y are equal no rotation is better than another:
    scale 0 and no rotation, so that every point maps to the mean of y. Points on a line leave the turn about it free; no distance
    depends on it.
    Raises UserError for shapes that differ and for values that are not finite.
    """
    x, y = same_shape(x, y)
    for name, points in (("x", x), ("y", y)):
        if not np.isfinite(points).all():
            raise UserError(name, first_bad(points), "finite points")
    mean_x, mean_y = x.mean(1, keepdims=True), y.mean(1, keepdims=True)
    a, b = x - mean_x, y - mean_y
    u, singular, vh = np.linalg.svd(np.swapaxes(b, 1, 2) @ a)
    # Of the two signs the one without reflection; it costs least in the direction of the smallest singular value.
    sign = np.where(np.linalg.det(u) * np.linalg.det(vh) < 0, -1.0, 1.0)
    u[..., 2] *= sign[:, None]
    singular[:, 2] *= sign
    free = _is_point(x, a) | _is_point(y, b)
    rotation = np.where(free[:, None, None], np.eye(3), u @ vh)
    spread = np.where(free, 1.0, np.square(a).sum((1, 2)))
    scale = np.where(free, 0.0, singular.sum(1) / spread)
    moved = scale[:, None] * (rotation @ mean_x[:, 0, :, None])[..., 0]
    return Similarity(scale, rotation, mean_y[:, 0] - moved)


def same_shape(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64, of one shape (frames, joints, 3). Raises UserError for others."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 3 or a.shape[-1] != 3 or a.shape[1] == 0:
        raise UserError("joints", (a.shape, b.shape), "two arrays of one shape (frames, joints, 3)")
    return a, b


def _is_point(points: np.ndarray, centred: np.ndarray) -> np.ndarray:
    """(F,) bool: all points of a frame are equal but for rounding."""
    return np.linalg.norm(centred, axis=(1, 2)) <= _POINT * np.linalg.norm(points, axis=(1, 2))


def first_bad(values: np.ndarray) -> float:
    """The first value that is not finite."""
    return float(values[~np.isfinite(values)][0])
