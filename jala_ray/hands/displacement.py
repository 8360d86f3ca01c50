"""How a hand moves within a chunk, as probes and teachers are asked for it."""

from __future__ import annotations

import numpy as np

from jala_ray.types import WRIST_DIM

WRIST_FRAMES = (2, 5, 8, 11, 14)
"""Frames of a chunk at which the wrist's displacement is asked for."""


def motion_targets(features: np.ndarray) -> dict[str, np.ndarray]:
    """Features (C, 15, 99) of chunks -> `wrist` (C, 15), its displacement at five frames in m, and `finger` (C, 90), from first to last."""
    wrist = features[..., WRIST_DIM - 3 : WRIST_DIM]
    moved = (wrist - wrist[:, :1])[:, list(WRIST_FRAMES)].reshape(len(features), -1)
    return {"wrist": moved, "finger": features[:, -1, WRIST_DIM:] - features[:, 0, WRIST_DIM:]}
