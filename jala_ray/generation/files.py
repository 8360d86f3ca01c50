"""Generated motion as an NPZ file.

With T frames of motion (15 per second of model time), N chunks of K tokens, and SIDE `left` or `right` for every hand in `hands`:

| key | shape | content |
|---|---|---|
| `hands` | (H,) | names of the hands that have motion |
| `time_s` | (T,) | seconds of model time since the picture |
| `video_time_s` | (T,) | presentation times in the video, seconds |
| `SIDE_theta` | (T, 15, 3) | MANO finger rotations, axis-angle, rad, absolute (flat-hand mean) |
| `SIDE_rot` | (T, 3) | rotation of the wrist (MANO's global_orient), axis-angle, rad |
| `SIDE_wrist` | (T, 3) | position of the wrist joint, m (MANO's transl is this less the wrist of the unposed hand) |
| `SIDE_beta` | (10,) | MANO shape |
| `SIDE_joints` | (T, 21, 3) | joints in MANO's order with fingertips, m |
| `SIDE_pixels` | (T, 21, 2) | the joints in the video's frames, px; NaN behind the camera |
| `SIDE_ids` | (N, K) | motion tokens |
| `intrinsics` | (3, 3) | camera matrix, px of a picture of `image_size` |
| `image_size` | (2,) | width and height of the upright video, px |
| `camera_assumed` | () | nobody told the camera: its field of view is assumed |
| `about` | () | JSON: checkpoint, text, settings and versions |

Poses and joints are in the camera frame of the picture that the motion begins with: x right, y down, z forward.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from jala_ray import storage
from jala_ray.generation.motion import Motion
from jala_ray.generation.scene import Scene
from jala_ray.hands.camera import intrinsic_matrix
from jala_ray.hands.rotations import matrix_to_axis_angle
from jala_ray.storage import StorageOptions
from jala_ray.types import HAND_NAMES, MODEL_FPS, Hand


def motion_arrays(
    motion: Motion, scene: Scene, pixels: Mapping[Hand, np.ndarray], about: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The file's arrays; `pixels`: hand -> (T, 21, 2) in the video's frames."""
    frames = motion.features.shape[1]
    camera = scene.camera
    arrays: dict[str, Any] = {
        "hands": np.array([HAND_NAMES[hand] for hand in motion.hands]),
        "time_s": np.arange(frames) / MODEL_FPS,
        "video_time_s": scene.times(frames),
        "intrinsics": intrinsic_matrix(camera),
        "image_size": np.array([camera.width, camera.height]),
        "camera_assumed": np.array(scene.assumed),
        "about": np.array(json.dumps(about)),
    }
    for hand in motion.hands:
        side, beta = HAND_NAMES[hand], scene.beta(hand)
        theta, rot, wrist = motion.pose(hand)
        arrays |= {
            f"{side}_theta": matrix_to_axis_angle(torch.from_numpy(theta)).numpy(),
            f"{side}_rot": matrix_to_axis_angle(torch.from_numpy(rot)).numpy(),
            f"{side}_wrist": wrist,
            f"{side}_beta": beta,
            f"{side}_joints": motion.joints(hand, beta),
            f"{side}_pixels": pixels[hand],
            f"{side}_ids": motion.ids[hand],
        }
    return arrays


def write_npz(address: str, arrays: Mapping[str, np.ndarray], options: StorageOptions | None = None) -> None:
    """Write arrays to a file, local or s3://."""
    buffer = io.BytesIO()
    cast(Any, np.savez_compressed)(buffer, **arrays)
    storage.write_bytes(address, buffer.getvalue(), options)
