"""Motion features of one hand: wrist = 6-D rotation + translation (9), fingers = 15 x 6-D (90); wrist first
(method.md 1).

Left fingers are mirrored to the right-hand convention, so that both hands share one finger tokenizer; the
wrist is not.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jala_ray.hands.rotations import axis_angle_to_matrix, matrix_to_6d, rotation_6d_to_matrix
from jala_ray.types import FEATURE_DIM, WRIST_DIM, Hand, HandTrack, UserError


def mirror_rotation(matrix: Tensor) -> Tensor:
    """Reflect rotations (..., 3, 3) in the plane x = 0: M R M, M = diag(-1, 1, 1). Its own inverse."""
    sign = torch.tensor([-1.0, 1.0, 1.0], dtype=matrix.dtype, device=matrix.device)
    return matrix * sign[:, None] * sign


def pose_to_features(theta: Tensor, rot: Tensor, wrist: Tensor, side: Hand) -> Tensor:
    """theta (..., 15, 3, 3), rot (..., 3, 3), wrist (..., 3) in m -> features (..., 99), else UserError."""
    for name, value, shape in (("theta", theta, (15, 3, 3)), ("rot", rot, (3, 3)), ("wrist", wrist, (3,))):
        if tuple(value.shape[-len(shape) :]) != shape:
            raise UserError(name, tuple(value.shape), f"shape (..., {', '.join(map(str, shape))})")
    fingers = mirror_rotation(theta) if side is Hand.LEFT else theta
    return torch.cat([matrix_to_6d(rot), wrist, matrix_to_6d(fingers).flatten(-2)], -1)


def features_to_pose(features: Tensor, side: Hand) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse of `pose_to_features`; 6-D maps back by Gram-Schmidt. (..., 99) -> theta, rot, wrist."""
    if features.shape[-1] != FEATURE_DIM:
        raise UserError("features", tuple(features.shape), f"shape (..., {FEATURE_DIM})")
    wrist_part, fingers = features[..., :WRIST_DIM], features[..., WRIST_DIM:]
    theta = rotation_6d_to_matrix(fingers.unflatten(-1, (15, 6)))
    theta = mirror_rotation(theta) if side is Hand.LEFT else theta
    return theta, rotation_6d_to_matrix(wrist_part[..., :6]), wrist_part[..., 6:]


def clip_features(track: HandTrack, side: Hand) -> np.ndarray:
    """Features (T, 99) float32 at the track's own frame times, zero on invalid frames."""
    if not len(track.valid) == len(track.theta) == len(track.rot) == len(track.wrist):
        lengths = (len(track.valid), len(track.theta), len(track.rot), len(track.wrist))
        raise UserError("track", lengths, "valid, theta, rot and wrist of one length")
    theta, rot, wrist = (torch.from_numpy(np.asarray(a, np.float64)) for a in (track.theta, track.rot, track.wrist))
    features = pose_to_features(axis_angle_to_matrix(theta), axis_angle_to_matrix(rot), wrist, side).numpy()
    features = np.where(np.asarray(track.valid, bool)[:, None], features, 0.0).astype(np.float32)
    if not np.isfinite(features).all():
        frame = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
        raise UserError(f"track pose of frame {frame}", "NaN or infinity", "finite numbers", "Mark it invalid.")
    return features
