"""Named orders of the 21 hand joints, and conversions between them.

All orders hold the same 21 points (wrist, three joints and the tip of five fingers) and differ only in
sequence. ARCTIC's joints are in MANO order; VITRA's and dex-retargeting's are in MediaPipe order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from jala_ray.types import UserError

if TYPE_CHECKING:
    from torch import Tensor

FINGERS = ("thumb", "index", "middle", "ring", "pinky")
_MANO_CHAINS = ("index", "middle", "pinky", "ring", "thumb")

MANO_ORDER: tuple[str, ...] = (
    "wrist",
    *(f"{finger}{joint}" for finger in _MANO_CHAINS for joint in (1, 2, 3)),
    *(f"{finger}_tip" for finger in FINGERS),
)
"""The kinematic tree's 16 joints, then the tips as smplx lists them: thumb, index, middle, ring, pinky."""
MEDIAPIPE_ORDER: tuple[str, ...] = (
    "wrist",
    *(name for finger in FINGERS for name in (*(f"{finger}{joint}" for joint in (1, 2, 3)), f"{finger}_tip")),
)
"""Finger by finger from the thumb, base to tip."""
JOINT_ORDERS: dict[str, tuple[str, ...]] = {
    "mano": MANO_ORDER,
    "mediapipe": MEDIAPIPE_ORDER,
    "arctic": MANO_ORDER,
}

MANO_PARENTS: tuple[int, ...] = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14, 15, 3, 6, 12, 9)
"""Parent of each joint of MANO_ORDER, tips included: the bones to draw or to measure."""

ArrayOrTensor = TypeVar("ArrayOrTensor", np.ndarray, "Tensor")


def joint_permutation(source: str, target: str) -> list[int]:
    """Indices p with `x_target = x_source[..., p, :]`. Raises UserError for an unknown order."""
    for field, name in (("source", source), ("target", target)):
        if name not in JOINT_ORDERS:
            raise UserError(field, name, f"one of {sorted(JOINT_ORDERS)}", "Name the joint order of the data.")
    position = {name: index for index, name in enumerate(JOINT_ORDERS[source])}
    return [position[name] for name in JOINT_ORDERS[target]]


def convert_joints(joints: ArrayOrTensor, *, source: str, target: str) -> ArrayOrTensor:
    """Reorder joints (..., 21, 3) from the `source` order to the `target` order (keys of JOINT_ORDERS)."""
    if joints.shape[-2:] != (21, 3):
        raise UserError("joints", tuple(joints.shape), "shape (..., 21, 3)", "Pass all 21 joints.")
    return joints[..., joint_permutation(source, target), :]
