"""UmeTrack's hand (Han et al., 'UmeTrack', 2022): joint angles and a person's skeleton -> 21 joints in MANO order.

HOT3D keeps the skeleton beside each sequence, in umetrack_hand_user_profile.json. It is a left hand in millimetres;
a right hand is its mirror image in x. Four joints a finger, thumb first, turn about fixed axes; the wrist's two
joints are not used, as in HOT3D's toolkit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from jala_ray.data.adapters.base import parsing
from jala_ray.hands.camera import compose_rigid, transform_points
from jala_ray.hands.joints import FINGERS, MANO_ORDER
from jala_ray.types import Hand, UserError

JOINTS, BONES, LANDMARKS = 4, 17, 21
"""Joints a finger; bones: root, wrist, three of each finger (its first joint has none of its own)."""
ANGLES = 22
_ORDER = (
    *(f"{finger}_tip" for finger in FINGERS),
    *("wrist", "thumb2", "thumb3"),
    *(f"{finger}{joint}" for finger in FINGERS[1:] for joint in (1, 2, 3)),
)
"""UmeTrack's landmarks but the last, the palm's centre, by the joints of MANO that they are compared with."""
_FIELDS = {
    "joint_rest_positions": (ANGLES, 3),
    "joint_rotation_axes": (ANGLES, 3),
    "landmark_rest_positions": (LANDMARKS, 3),
    "landmark_rest_bone_indices": (LANDMARKS, 3),
    "landmark_rest_bone_weights": (LANDMARKS, 3),
}


@dataclass(frozen=True)
class Skeleton:
    """A person's hand at rest, left, metres."""

    joints: np.ndarray
    """(20, 3) points that the joints turn about, finger by finger."""
    axes: np.ndarray
    """(20, 3) their unit axes."""
    landmarks: np.ndarray
    """(21, 3)."""
    weights: np.ndarray
    """(21, 17) share of each bone in each landmark."""

    @classmethod
    def of_profile(cls, profile: Any, where: str) -> Skeleton:
        """Parse the content of a user profile. Raises UserError naming the field."""
        if not isinstance(profile, dict) or not isinstance(profile.get("hand_model"), dict):
            raise UserError(where, type(profile).__name__, "an object with hand_model")
        arrays = {}
        for name, shape in _FIELDS.items():
            value = profile["hand_model"].get(name)
            with parsing(f"{where}: {name}", f"numbers of shape {shape}"):
                arrays[name] = np.asarray(value, float)
            if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
                raise UserError(f"{where}: {name}", arrays[name].shape, f"finite numbers of shape {shape}")
        positions, axes, landmarks, bones, shares = arrays.values()
        if bones.min() < 0 or bones.max() >= BONES:
            raise UserError(f"{where}: landmark_rest_bone_indices", bones.max(), f"bones 0 to {BONES - 1}")
        weights = np.zeros((LANDMARKS, BONES))
        # A bone named twice is meant once: unused places repeat it with weight 0.
        landmark, place = np.nonzero(shares)
        weights[landmark, bones[landmark, place].astype(int)] = shares[landmark, place]
        used = len(FINGERS) * JOINTS
        return cls(positions[:used] / 1000, axes[:used], landmarks / 1000, weights)

    def pose(self, angles: np.ndarray, rotation: np.ndarray, position: np.ndarray, side: Hand) -> np.ndarray:
        """Joints (T, 21, 3) in MANO_ORDER, m, in the frame that the wrist's (T, 3, 3) and (T, 3) lead to.

        angles (T, 22), rad. thumb1, which UmeTrack has no landmark for, is taken between the thumb's two lowest
        joints: that lies as far from the wrist as MANO's, and fits best.
        """
        still = np.broadcast_to(np.eye(4)[:3], (len(angles), 3, 4))
        bones, lowest = [still, still], []
        for finger in range(len(FINGERS)):
            turn = still
            for level in range(JOINTS):
                joint = finger * JOINTS + level
                at = self.joints[joint]
                if finger == 0 and level < 2:
                    lowest.append(transform_points(turn, at))
                local = Rotation.from_rotvec(angles[:, joint, None] * self.axes[joint]).as_matrix()
                turn = compose_rigid(turn, np.concatenate([local, (at - local @ at)[..., None]], -1))
                if level > 0:
                    bones.append(turn)
        placed = np.stack([transform_points(bone, self.landmarks[None]) for bone in bones], 1)
        landmarks = np.einsum("lb,tblc->tlc", self.weights, placed)
        named = {name: landmarks[:, i] for i, name in enumerate(_ORDER)} | {"thumb1": (lowest[0] + lowest[1]) / 2}
        joints = np.stack([named[name] for name in MANO_ORDER], 1)
        joints = joints * (-1, 1, 1) if side is Hand.RIGHT else joints
        return transform_points(np.concatenate([rotation, position[..., None]], -1), joints)
