"""MPJPE: 21 joints over the whole sequence (method.md 8)."""

from __future__ import annotations

import numpy as np

from jala_ray.hands.metrics.base import frame_errors, metric, scored


@metric("mpjpe", label="MPJPE", unit="cm", text="21 joints over the whole sequence", place=1)
def mpjpe_cm(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> float:
    """Mean distance over the 21 joints of all valid frames, cm. Raises UserError as `hand_metrics`."""
    return float(frame_errors(*scored(predicted, true, valid)).mean())
