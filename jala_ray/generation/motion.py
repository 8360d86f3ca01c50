"""Generated motion, and the mean of several."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from jala_ray.hands.features import features_to_pose
from jala_ray.hands.mano import ManoHand, load_pair
from jala_ray.hands.rotations import matrix_to_6d, project_to_rotation, rotation_6d_to_matrix
from jala_ray.types import MODEL_FPS, WRIST_DIM, Hand

_ROTATION, _POSITION, _FINGERS = slice(0, 6), slice(6, WRIST_DIM), slice(WRIST_DIM, None)


def mean_motion(features: Tensor) -> Tensor:
    """Mean over the first axis of motion features (E, ..., 99) -> (..., 99): positions averaged, rotations averaged as
    matrices and projected back to SO(3) (method.md 7)."""
    if features.shape[0] == 1:
        return features[0]
    wrist = _mean_rotation(features[..., _ROTATION])
    fingers = _mean_rotation(features[..., _FINGERS].unflatten(-1, (15, 6))).flatten(-2)
    return torch.cat([wrist, features[..., _POSITION].mean(0), fingers], -1)


def _mean_rotation(six: Tensor) -> Tensor:
    return matrix_to_6d(project_to_rotation(rotation_6d_to_matrix(six).mean(0)))


@dataclass(frozen=True)
class Motion:
    """Motion of one clip, T frames at 15 fps of model time, in the camera frame of the picture it began with.

    T = 15 N, less where a time was asked for that is no whole number of seconds.
    """

    hands: tuple[Hand, ...]
    features: np.ndarray
    """(2, T, 99) float32, left and right; 0 for a hand that was not asked for (see `hands.features`)."""
    ids: np.ndarray
    """(2, N, K) motion ids."""
    fps: float = float(MODEL_FPS)

    def first(self, frames: int) -> Motion:
        """The first `frames` frames; `ids` stay whole."""
        return replace(self, features=self.features[:, :frames])

    def pose(self, hand: Hand) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """MANO pose: theta (T, 15, 3, 3) and rot (T, 3, 3) rotation matrices, position (T, 3) of the wrist joint in metres."""
        theta, rot, wrist = features_to_pose(torch.from_numpy(self.features[hand]), hand)
        return theta.numpy(), rot.numpy(), wrist.numpy()

    def joints(self, hand: Hand, beta: np.ndarray | None = None, model: ManoHand | None = None) -> np.ndarray:
        """(T, 21, 3) joints in metres, of a hand of shape `beta` (10,) by `model`; the mean shape and the shipped hand by default."""
        return joints_of(self.features[hand], hand, beta, model)


def joints_of(
    features: np.ndarray, hand: Hand, beta: np.ndarray | None = None, model: ManoHand | None = None
) -> np.ndarray:
    """Features (..., 99) -> joints (..., 21, 3) float32 in metres."""
    model = load_pair()[hand] if model is None else model
    shape = torch.zeros(10) if beta is None else torch.from_numpy(np.array(beta, np.float32))
    theta, rot, wrist = features_to_pose(torch.from_numpy(np.array(features, np.float32)), hand)
    with torch.no_grad():
        return model.joints(theta, rot, wrist, shape.expand(*wrist.shape[:-1], 10)).numpy()
