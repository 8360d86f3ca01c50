"""MDE: final displacement of the wrist (method.md 8)."""

from __future__ import annotations

import math

import numpy as np

from jala_ray.hands.metrics.base import CM, WRIST, metric, scored


@metric("mde", label="MDE", unit="cm", text="final displacement of the wrist", place=4, reduction="hands")
def mde_cm(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> float:
    """Distance of predicted and true displacement of the wrist from the first to the last valid frame, cm.

    NaN where there is one valid frame: nothing is displaced. Raises UserError as `hand_metrics`.
    """
    predicted, true = scored(predicted, true, valid)
    if len(true) < 2:
        return math.nan
    displacement, expected = (joints[-1, WRIST] - joints[0, WRIST] for joints in (predicted, true))
    return float(CM * np.linalg.norm(displacement - expected))
