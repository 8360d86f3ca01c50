"""What a metric is, and what all of them share: checks, valid frames, distances.

Everywhere predicted and true are (T, 21, 3) joints in metres in one frame of reference, joint 0 the wrist, at 15 frames per second, and
valid (T,) bool says which frames count. What stands in the others, NaN included, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jala_ray.hands.similarity import first_bad, same_shape
from jala_ray.registry import LAST, Registry
from jala_ray.types import UserError

N_HAND_JOINTS = 21
WRIST = 0
"""The wrist's place in every joint order."""
CM = 100.0
"""Centimetres per metre."""

Function = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
"""(predicted, true, valid) of one hand of one clip -> its score; NaN where it has none."""


@dataclass(frozen=True)
class Metric:
    """One number per hand and clip, and all that tables, pages and sweeps say of it."""

    key: str
    label: str
    """In tables and on pages."""
    unit: str
    text: str
    """What it measures, in a few words."""
    function: Function
    better: Literal["lower", "higher"] = "lower"
    reduction: Literal["frames", "hands"] = "frames"
    """Both hands of a clip: the mean weighted by their valid frames, or the plain mean of the two."""

    def __call__(self, predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> float:
        return self.function(predicted, true, valid)

    @property
    def heading(self) -> str:
        """The label, with the unit where it is not the usual one, cm."""
        return self.label if self.unit == "cm" else f"{self.label}, {self.unit}"

    @property
    def sign(self) -> int:
        """1 where lower is better, else -1: times the score, lower is better."""
        return 1 if self.better == "lower" else -1


METRICS: Registry[Metric] = Registry("metric", "jala_ray.hands.metrics", "jala_ray.metrics")
"""By key: the paper's in its order, then those that were added, by key."""


def metric(
    key: str,
    *,
    label: str,
    unit: str,
    text: str,
    better: Literal["lower", "higher"] = "lower",
    reduction: Literal["frames", "hands"] = "frames",
    place: int = LAST,
) -> Callable[[Function], Function]:
    """Decorator: the function is the metric `key`, which is also the name of its file. See `Metric` for the rest."""

    def keep(function: Function) -> Function:
        METRICS.register(key, place=place)(Metric(key, label, unit, text, function, better, reduction))
        return function

    return keep


def hand_metrics(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """All of `METRICS` by key, each in its unit.

    Raises UserError for shapes other than (T, 21, 3), (T, 21, 3) and (T,) bool, for a value in a valid frame that is not finite, and
    where no frame is valid.
    """
    return {key: one(predicted, true, valid) for key, one in METRICS.items()}


def frame_errors(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(T,) mean distance of the 21 joints in each frame, cm. Raises UserError for shapes that differ."""
    predicted, true = _joints(predicted, true)
    return CM * np.linalg.norm(predicted - true, axis=-1).mean(-1)


def scored(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
            raise UserError(f"{name} joints of frame {frame}", first_bad(joints[frame]), expected)
    return predicted[valid], true[valid]


def _joints(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, true = same_shape(predicted, true)
    if true.shape[1] != N_HAND_JOINTS:
        raise UserError("joints", true.shape, f"shape (T, {N_HAND_JOINTS}, 3)", "Pass all 21 joints.")
    return predicted, true
