"""MWTE: wrist position (method.md 8)."""

from __future__ import annotations

import numpy as np

from jala_ray.hands.metrics.base import CM, WRIST, metric, scored


@metric("mwte", label="MWTE", unit="cm", text="wrist position", place=3)
def mwte_cm(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> float:
    """Mean distance of the wrist over all valid frames, cm. Raises UserError as `hand_metrics`."""
    predicted, true = scored(predicted, true, valid)
    return float(CM * np.linalg.norm(predicted[:, WRIST] - true[:, WRIST], axis=-1).mean())
