"""The files of a HOT3D sequence: headset and hand trajectories, the cameras' places, masks.

Formats as HOT3D's own toolkit reads them. Everything is kept by its timestamp, in nanoseconds.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from jala_ray import storage
from jala_ray.data.adapters.base import parsing
from jala_ray.types import Hand, UserError

METADATA, HEADSET = "metadata.json", "headset_trajectory.csv"
UMETRACK, MANO = "umetrack_hand_pose_trajectory.jsonl", "mano_hand_pose_trajectory.jsonl"
PROFILE = "umetrack_hand_user_profile.json"
CAMERA_MODELS, ONLINE_CALIBRATION = "camera_models.json", "mps/slam/online_calibration.jsonl"
QA_MASK = "masks/mask_qa_pass.csv"
STREAMS = {"camera-rgb": "214-1", "camera-slam-left": "1201-1", "camera-slam-right": "1201-2"}
"""Camera label -> stream id, on both headsets."""
FRAMESET_NS = 1_000_000
"""Timestamps nearer than this are one moment seen by several cameras (the toolkit's tolerance). Aria lists each
camera's own shutter, 0.09 ms and even 13 ns apart: one pose told twice, too close for float32 seconds.
"""


@dataclass(frozen=True)
class RecordedHand:
    """One hand at T moments, world frame; zeros and the identity where not `tracked`."""

    tracked: np.ndarray
    """(T,) bool."""
    values: np.ndarray
    """(T, W): UmeTrack's 22 joint angles in rad, or MANO's 15 PCA coefficients."""
    position: np.ndarray
    """(T, 3) of `wrist_xform`, m: UmeTrack's wrist; MANO's transl, which is not the wrist joint."""
    rotation: np.ndarray
    """(T, 3, 3) of `wrist_xform`."""
    confidence: np.ndarray
    """(T,); 1 where the file gives none."""
    beta: np.ndarray
    """(10,) MANO shape; zeros in UmeTrack's file."""


def read_json(uri: str) -> Any:
    """Content of a JSON file. Raises UserError."""
    content = storage.read_bytes(uri)
    with parsing(uri, "a whole JSON file"):
        return json.loads(content)


def read_headset(uri: str) -> tuple[np.ndarray, np.ndarray]:
    """Moments time_ns (T,) int64, ascending, and device-to-world transforms (T, 3, 4), m. Raises UserError."""
    columns = ("timestamp[ns]", *(f"t_wo_{axis}[m]" for axis in "xyz"), *(f"q_wo_{axis}" for axis in "wxyz"))
    rows = list(_csv_rows(uri, columns))
    if len(rows) < 2:
        raise UserError(uri, f"{len(rows)} poses", "two poses or more")
    with parsing(uri, "64-bit timestamps and numbers"):
        time_ns = np.array([int(row[0]) for row in rows], np.int64)
        values = np.array([row[1:] for row in rows], float)
    good = np.isfinite(values).all(1) & _unit(values[:, 3:])
    order = np.argsort(time_ns[good], kind="stable")
    time_ns, values = time_ns[good][order], values[good][order]
    first = np.diff(time_ns, prepend=-(10**18)) > FRAMESET_NS
    if first.sum() < 2:
        raise UserError(uri, f"{int(first.sum())} moments with a pose", "two moments or more")
    return time_ns[first], rigid(values[first, 3:], values[first, :3])


def read_hands(uri: str, field: str, width: int, time_ns: np.ndarray) -> tuple[RecordedHand, RecordedHand]:
    """(left, right) of a hand trajectory at the moments `time_ns` (T,).

    field, width: `joint_angles`, 22 (UmeTrack) or `pose`, 15 (MANO). A hand without a finite pose within 1 ms of a
    moment is not tracked there. Raises UserError that names the line.
    """
    times: dict[Hand, list[int]] = {side: [] for side in Hand}
    found: dict[Hand, list[list[float]]] = {side: [] for side in Hand}
    for number, line in enumerate(storage.read_bytes(uri).decode(errors="replace").split("\n"), 1):
        if not line.strip():
            continue
        with parsing(f"{uri}, line {number}", f"hand poses with {width} {field}, wrist_xform and timestamp_ns"):
            entry = json.loads(line)
            for key, pose in entry["hand_poses"].items():
                wrist = pose["wrist_xform"]
                parts = [pose[field], wrist["t_xyz"], wrist["q_wxyz"], [pose.get("hand_confidence", 1.0)]]
                parts.append(pose.get("betas", [0.0] * 10))
                if [len(part) for part in parts] != [width, 3, 4, 1, 10]:
                    raise ValueError(f"lengths {[len(part) for part in parts]}")
                found[Hand(int(key))].append([float(value) for part in parts for value in part])
                times[Hand(int(key))].append(int(np.int64(entry["timestamp_ns"])))
    if not any(found.values()):
        raise UserError(uri, "no hand pose", "a trajectory of hands", "HOT3D publishes none for its test sequences.")
    left, right = (_at_moments(np.array(times[side]), np.array(found[side]), width, time_ns) for side in Hand)
    return left, right


def camera_in_device(folder: str, files: Sequence[str], label: str) -> np.ndarray:
    """Camera-to-device transform (3, 4) of the camera `label`, m. Raises UserError when it isn't known.

    Quest 3 sequences have camera_models.json. Aria's cameras are in the MPS data (the first online calibration; it
    drifts by microns); its device frame is the left SLAM camera's by definition, so that one needs no file.
    """
    found = {}
    with parsing(f"{folder}: calibration", "T_Device_Camera"):
        if CAMERA_MODELS in files:
            for camera in read_json(storage.join(folder, CAMERA_MODELS)):
                place = camera["T_Device_Camera"]
                found[camera["label"]] = rigid(place["quaternion_wxyz"], place["translation_xyz"])
        elif ONLINE_CALIBRATION in files:
            lines = storage.read_bytes(storage.join(folder, ONLINE_CALIBRATION)).splitlines()
            for camera in json.loads(lines[0])["CameraCalibrations"]:
                place = camera["T_Device_Camera"]
                (w, xyz) = place["UnitQuaternion"]
                found[camera["Label"]] = rigid([w, *xyz], place["Translation"])
        elif label == "camera-slam-left":
            return np.eye(4)[:3]
    if label not in found:
        remedy = "Download the MPS data, or pass --camera camera-slam-left, whose frame is Aria's device frame."
        known = sorted(found) or "no calibration"
        raise UserError(f"{folder}: {label}", known, f"its place in {CAMERA_MODELS} or {ONLINE_CALIBRATION}", remedy)
    return found[label]


def failed_qa(uri: str, stream: str) -> np.ndarray:
    """Timestamps (M,) at which HOT3D's manual check found fault with the poses seen by `stream`, ascending."""
    rows = _csv_rows(uri, ("timestamp[ns]", "stream_id", "mask"))
    failed = sorted(int(time) for time, seen_by, mask in rows if seen_by == stream and mask != "True")
    with parsing(uri, "64-bit timestamps"):
        return np.array(failed, np.int64)


def rigid(quaternion_wxyz: Any, translation: Any) -> np.ndarray:
    """[R | t] (..., 3, 4) of quaternions (..., 4), real part first, and translations (..., 3)."""
    rotation = Rotation.from_quat(np.asarray(quaternion_wxyz, float), scalar_first=True).as_matrix()
    return np.concatenate([rotation, np.asarray(translation, float)[..., None]], -1)


def nearest(time_ns: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index (T,) into ascending time_ns (M,) of the entry nearest to each moment, and whether it is within 1 ms."""
    if not len(time_ns):
        return np.zeros(len(moments), int), np.zeros(len(moments), bool)
    right = np.searchsorted(time_ns, moments).clip(0, len(time_ns) - 1)
    left = (right - 1).clip(0)
    index = np.where(np.abs(time_ns[left] - moments) < np.abs(time_ns[right] - moments), left, right)
    return index, np.abs(time_ns[index] - moments) <= FRAMESET_NS


def _csv_rows(uri: str, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The named columns of every row. Raises UserError for a missing column, or a row that ends early."""
    reader = csv.DictReader(StringIO(storage.read_bytes(uri).decode(errors="replace"), newline=""))
    missing = set(columns) - set(reader.fieldnames or ())
    if missing:
        raise UserError(f"{uri}: columns", reader.fieldnames, f"{', '.join(columns)}")
    numbers = [name for name in columns if name.startswith(("timestamp", "t_", "q_"))]
    rows = enumerate(reader, 2)
    while True:
        with parsing(uri, "comma-separated values"):
            number, row = next(rows, (0, {}))
        if not row:
            return
        with parsing(f"{uri}, line {number}", "a number in every column"):
            for name in numbers:
                (int if name.startswith("timestamp") else float)(row[name])
        yield tuple(row[name] for name in columns)


def _unit(quaternion: np.ndarray) -> np.ndarray:
    return np.abs(np.linalg.norm(quaternion, axis=-1) - 1) < 0.01


def _at_moments(time_ns: np.ndarray, rows: np.ndarray, width: int, moments: np.ndarray) -> RecordedHand:
    if len(rows):
        good = np.isfinite(rows).all(1) & _unit(rows[:, width + 3 : width + 7])
        time_ns, rows = time_ns[good], rows[good]
        order = np.argsort(time_ns, kind="stable")
        time_ns, rows = time_ns[order], rows[order]
    index, tracked = nearest(time_ns, moments)
    at = np.zeros((len(moments), width + 18))
    at[:, width + 3] = 1  # the identity
    at[tracked] = rows[index[tracked]] if len(rows) else 0
    place = rigid(at[:, width + 3 : width + 7], at[:, width : width + 3])
    beta = rows[0, width + 8 :] if len(rows) else np.zeros(10)
    return RecordedHand(tracked, at[:, :width], place[..., 3], place[..., :3], at[:, width + 7], beta)
