"""PA-MPJPE: after similarity Procrustes in each frame (method.md 8)."""

from __future__ import annotations

import numpy as np

from jala_ray.hands.metrics.base import frame_errors, metric, scored
from jala_ray.hands.similarity import procrustes


@metric("pa_mpjpe", label="PA-MPJPE", unit="cm", text="after similarity Procrustes in each frame", place=2)
def pa_mpjpe_cm(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> float:
    """MPJPE after `procrustes` of every frame, cm: articulation alone. Raises UserError as `hand_metrics`."""
    predicted, true = scored(predicted, true, valid)
    return float(frame_errors(procrustes(predicted, true).apply(predicted), true).mean())
