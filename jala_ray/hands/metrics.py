"""Hand-motion metrics in cm (METHOD 8): one hand of one clip, numpy, float64 inside.

Everywhere predicted and true are (T, 21, 3) joints in metres in one frame of reference, joint 0 the wrist, and valid (T,) bool says which
frames count. What stands in the others, NaN included, changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jala_ray.types import UserError

N_HAND_JOINTS = 21
WRIST = 0
"""The wrist's place in every joint order."""
CM = 100.0
"""Centimetres a metre."""
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
    x, y = _same_shape(x, y)
    for name, points in (("x", x), ("y", y)):
        if not np.isfinite(points).all():
            raise UserError(name, _first_bad(points), "finite points")
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


def frame_errors(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(T,) mean distance of the 21 joints in each frame, cm. Raises UserError for shapes that differ."""
    predicted, true = _joints(predicted, true)
    return CM * np.linalg.norm(predicted - true, axis=-1).mean(-1)


def mpjpe_cm(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> float:
    """Mean distance over the 21 joints of all valid frames, cm. Raises UserError as `hand_metrics`."""
    return float(frame_errors(*_scored(predicted, true, valid)).mean())


def pa_mpjpe_cm(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> float:
    """MPJPE after `procrustes` of every frame, cm: articulation alone. Raises UserError as `hand_metrics`."""
    predicted, true = _scored(predicted, true, valid)
    return float(frame_errors(procrustes(predicted, true).apply(predicted), true).mean())


def mwte_cm(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> float:
    """Mean distance of the wrist over all valid frames, cm. Raises UserError as `hand_metrics`."""
    predicted, true = _scored(predicted, true, valid)
    return float(CM * np.linalg.norm(predicted[:, WRIST] - true[:, WRIST], axis=-1).mean())


def mde_cm(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> float:
    """Distance of predicted and true displacement of the wrist from the first to the last valid frame, cm.

    NaN where there is one valid frame: nothing is displaced. Raises UserError as `hand_metrics`.
    """
    predicted, true = _scored(predicted, true, valid)
    if len(true) < 2:
        return math.nan
    displacement, expected = (joints[-1, WRIST] - joints[0, WRIST] for joints in (predicted, true))
    return float(CM * np.linalg.norm(displacement - expected))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "mpjpe": mpjpe_cm,
    "pa_mpjpe": pa_mpjpe_cm,
    "mwte": mwte_cm,
    "mde": mde_cm,
}
"""Key -> metric, in the paper's order."""


def hand_metrics(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """All of `METRICS` in cm, by key.

    Raises UserError for shapes other than (T, 21, 3), (T, 21, 3) and (T,) bool, for a value in a valid frame that is not finite, and
    where no frame is valid.
    """
    return {name: metric(predicted, true, valid) for name, metric in METRICS.items()}


def _scored(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true joints of the valid frames, (F, 21, 3) float64 with F >= 1."""
    predicted, true = _joints(predicted, true)
    valid = np.asarray(valid)
    if valid.shape != true.shape[:1] or valid.dtype != bool:
        raise UserError("valid", f"{valid.dtype} {valid.shape}", f"bool {true.shape[:1]}, one for each frame")
    if not valid.any():
        raise UserError("valid", f"no valid frame of {len(valid)}", "a valid frame", "Leave out hands without truth.")
    for name, joints in (("predicted", predicted), ("true", true)):
        bad = valid & ~np.isfinite(joints).all((1, 2))
        if bad.any():
            frame = int(bad.argmax())
            expected = "finite joints in valid frames"
            raise UserError(f"{name} joints of frame {frame}", _first_bad(joints[frame]), expected)
    return predicted[valid], true[valid]


def _joints(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, true = _same_shape(predicted, true)
    if true.shape[1] != N_HAND_JOINTS:
        raise UserError("joints", true.shape, f"shape (T, {N_HAND_JOINTS}, 3)", "Pass all 21 joints.")
    return predicted, true


def _same_shape(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 3 or a.shape[-1] != 3 or a.shape[1] == 0:
        raise UserError("joints", (a.shape, b.shape), "two arrays of one shape (frames, joints, 3)")
    return a, b


def _is_point(points: np.ndarray, centred: np.ndarray) -> np.ndarray:
    """(F,) bool: all points of a frame are equal but for rounding."""
    return np.linalg.norm(centred, axis=(1, 2)) <= _POINT * np.linalg.norm(points, axis=(1, 2))


def _first_bad(values: np.ndarray) -> float:
    return float(values[~np.isfinite(values)][0])
