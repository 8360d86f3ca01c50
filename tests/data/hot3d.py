"""HOT3D's sample, completed with what it lacks: the persons' UmeTrack skeletons and Aria's calibration.

A skeleton made from the hand that ships with the package stands in (test-made, not anyone's), so bone lengths are not
the persons', but angles, wrists, headset, cameras and boxes are HOT3D's.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jala_ray.hands.joints import MANO_ORDER
from jala_ray.hands.mano import ManoHand
from jala_ray.types import Hand

ARIA, QUEST = "P0003_c701bd11", "P0002_273c2819"
PROFILE = "umetrack_hand_user_profile.json"
RGB = {"UnitQuaternion": [0.96, [0.28, 0.0, 0.0]], "Translation": [-0.004, -0.0127, -0.003]}
"""A made-up place of Aria's RGB camera: about where it is."""


def profile() -> dict:
    """A UmeTrack user profile with the bones of the package's left hand."""
    hand = ManoHand.load(None, Hand.LEFT)
    rest = hand.rest_joints(torch.zeros(10)).numpy()
    rest = 1000 * (np.concatenate([rest, hand.v_template[hand.tip_ids].numpy()]) - rest[0])
    at = dict(zip(MANO_ORDER, rest, strict=True))
    joints, axes = [], []
    thumb = [[0.75, 0.6, -0.2], [0.1, 0.4, 0.9], [0.5, 0.85, -0.1], [0.4, 0.9, 0.0]]
    for finger in ("thumb", "index", "middle", "ring", "pinky"):
        joints += [at[f"{finger}{level}"] for level in (1, 1, 2, 3)]
        axes += thumb if finger == "thumb" else [[0, -1, 0], *[[0, 0, -1]] * 3]
    axes = np.array([*axes, [0, 1, 0], [0, 0, 1]], float)
    places = [(f"{finger}_tip", 4 + 3 * i) for i, finger in enumerate(("thumb", "index", "middle", "ring", "pinky"))]
    places += [("wrist", 1), ("thumb2", 2), ("thumb3", 3)]
    for i, finger in enumerate(("index", "middle", "ring", "pinky")):
        places += [(f"{finger}1", 1), (f"{finger}2", 5 + 3 * i), (f"{finger}3", 6 + 3 * i)]
    places.append(("middle1", 1))  # the palm's centre, not used
    model = {
        "joint_rest_positions": np.array([*joints, at["wrist"], at["wrist"]]),
        "joint_rotation_axes": axes / np.linalg.norm(axes, axis=1, keepdims=True),
        "landmark_rest_positions": np.array([at[name] for name, _ in places]),
        "landmark_rest_bone_indices": np.array([[bone] * 3 for _, bone in places], float),
        "landmark_rest_bone_weights": np.tile([1.0, 0, 0], (21, 1)),
    }
    return {"hand_model": {name: value.tolist() for name, value in model.items()}}


def sample_folder(shared_data: Path) -> Path:
    folder = shared_data / "hot3d_sample"
    if not folder.is_dir():
        pytest.skip(f"HOT3D's sample is absent: no folder {folder}")
    return folder


def copied(sample: Path, folder: Path, *sequences: str, skeleton: str | None = "stand-in") -> Path:
    """Sequences of the sample in a folder that may be written to, completed but for `skeleton` None."""
    left_out = shutil.ignore_patterns("mps", *(() if skeleton == "own" else (PROFILE,)))
    for name in sequences:
        shutil.copytree(sample / name, folder / name, ignore=left_out, copy_function=shutil.copyfile)
        for place in [folder / name, *(folder / name).iterdir()]:
            place.chmod(0o755 if place.is_dir() else 0o644)
        if skeleton == "stand-in":
            (folder / name / PROFILE).write_text(json.dumps(profile()))
    if skeleton and ARIA in sequences:
        (folder / ARIA / "mps/slam").mkdir(parents=True)
        cameras = {"CameraCalibrations": [{"Label": "camera-rgb", "T_Device_Camera": RGB}]}
        (folder / ARIA / "mps/slam/online_calibration.jsonl").write_text(json.dumps(cameras) + "\n{}\n")
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
