"""VITRA's episodes of Ego4D: egocentric video with MANO poses, camera, and instructions per hand.

An episode is a `.npy` that holds a pickled dict; its video lies beside it as `<video_name>.mp4`.
docs/manifest.md says what the fields turned out to mean.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from jala_ray import storage
from jala_ray.data.adapters.base import split_of
from jala_ray.data.rows import clip_id
from jala_ray.data.writing import Rejection
from jala_ray.hands.camera import (
    camera_from_matrix,
    first_camera_from_extrinsics,
    pose_to_first_camera,
    scale_camera,
)
from jala_ray.hands.convert import RestrictedUnpickler
from jala_ray.hands.rotations import matrix_to_axis_angle
from jala_ray.types import HAND_NAMES, WILD_TIME_SCALE, Clip, Domain, HandState, HandTrack, UserError
from jala_ray.video.decode import VideoInfo, probe

Range = tuple[int, int]


@dataclass(frozen=True)
class Vitra:
    """Wild labelled clips, one for each instructed frame range of each episode."""

    folder: str
    """Folder with the episodes (.npy) and their videos (.mp4)."""
    intrinsics_width: int = 1440
    """Width in px of the image that the episodes' intrinsics are for."""
    intrinsics_height: int = 1080
    """Height of that image."""
    val_fraction: float = 0.0
    """Share of videos held out for validation."""

    name: ClassVar[str] = "vitra"
    domain: ClassVar[Domain] = "wild"

    def clips(self) -> Iterator[Clip | Rejection]:
        files = sorted(file for file in storage.list_files(self.folder) if file.endswith(".npy"))
        if not files:
            raise UserError("folder", self.folder, "a folder with VITRA episodes (.npy)", "Check the path.")
        for file in files:
            try:
                yield from self._episode(file)
            except (UserError, KeyError) as error:
                reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
                identity = clip_id(self.name, file, 0.0, 0.0, "rejected")
                yield Rejection(identity, self.name, storage.join(self.folder, file), f"an episode: {reason}")

    def _episode(self, file: str) -> list[Clip]:
        episode = read_episode(storage.join(self.folder, file))
        video = f"{episode['video_name']}.mp4"
        uri = storage.join(self.folder, video)
        info = probe(uri)
        camera = camera_from_matrix(episode["intrinsics"], self.intrinsics_width, self.intrinsics_height)
        clips = []
        for frames, texts in instructed_ranges(episode).items():
            start_s, end_s, pose_time_s, extrinsics, hands = _motion(episode, frames, info)
            clip = Clip(
                clip_id=clip_id(self.name, file, start_s, end_s),
                source=self.name,
                domain=self.domain,
                split=split_of(video, self.val_fraction),
                task_type="generation",
                video_uri=uri,
                start_s=start_s,
                end_s=end_s,
                fps=info.fps,
                time_scale=WILD_TIME_SCALE,
                instructions=tuple(texts),
                description=texts[0],
                camera=scale_camera(camera, info.width, info.height),
                pose_time_s=pose_time_s,
                hands=hands,
                extrinsics=extrinsics,
            )
            clips.append(clip)
        if not clips:
            raise UserError("text", episode["text"], "an instruction with a frame range")
        return clips


def read_episode(uri: str) -> dict[str, Any]:
    """The dict in an episode's .npy, unpickled without letting the pickle run anything. Raises UserError."""
    file = io.BytesIO(storage.read_bytes(uri))
    try:
        form = np.lib.format
        old = form.read_magic(file) == (1, 0)
        (form.read_array_header_1_0 if old else form.read_array_header_2_0)(file)
        episode = RestrictedUnpickler(file).load().item()
    except Exception as error:  # a hostile or damaged pickle can fail in any way; all of them mean: refused
        raise UserError(uri, f"{type(error).__name__}: {error}", "a .npy with one pickled dict") from error
    if not isinstance(episode, dict):
        raise UserError(uri, type(episode).__name__, "a .npy with one pickled dict")
    return episode


def instructed_ranges(episode: dict[str, Any]) -> dict[Range, list[str]]:
    """Frame ranges [first, last) that have an instruction, with its rephrasings.

    A hand without an action has the range (0, 0). Two hands instructed over one range give one clip.
    """
    found: dict[Range, dict[str, list[str]]] = {}
    for side in HAND_NAMES:
        phrased = {_range(frames): texts for texts, frames in episode["text_rephrase"][side]}
        for text, frames in episode["text"][side]:
            if (span := _range(frames))[1] > span[0]:
                found.setdefault(span, {})[side] = _distinct([text, *phrased.get(span, [])])
    joined = {}
    for span, by_side in sorted(found.items()):
        if len(by_side) == 1:
            joined[span] = next(iter(by_side.values()))
        else:
            left, right = (by_side[side] for side in HAND_NAMES)
            joined[span] = [f"Left hand: {a}. Right hand: {b}" for a, b in zip(left, right, strict=False)]
    return joined


def _range(frames: Any) -> Range:
    first, last = frames
    return int(first), int(last)


def _distinct(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(text.strip().rstrip(".") for text in texts if text.strip()))


def _motion(
    episode: dict[str, Any], frames: Range, info: VideoInfo
) -> tuple[float, float, np.ndarray, np.ndarray, tuple[HandTrack, HandTrack]]:
    """start_s, end_s, pose_time_s, extrinsics and hands of one range of an episode's frames."""
    span = slice(*frames)
    time_s = info.start_s + np.asarray(episode["video_decode_frame"], float)[span] / info.fps
    if len(time_s) != frames[1] - frames[0]:
        raise UserError("text range", frames, f"within {len(episode['video_decode_frame'])} frames")
    end_s = float(time_s[-1]) + 1 / info.fps
    if end_s > info.start_s + info.duration_s + 0.5 / info.fps:
        raise UserError("video_decode_frame", end_s, f"times within the video's {info.duration_s:.2f} s")
    extrinsics = first_camera_from_extrinsics(np.asarray(episode["extrinsics"], float)[span])
    left, right = (_track(episode[side], span, extrinsics) for side in HAND_NAMES)
    pose_time_s = (time_s - time_s[0]).astype(np.float32)
    return float(time_s[0]), end_s, pose_time_s, extrinsics.astype(np.float32), (left, right)


def _track(hand: dict[str, Any], span: slice, first_to_camera: np.ndarray) -> HandTrack:
    valid = np.asarray(hand["kept_frames"])[span].astype(bool)
    if not valid.any():
        return HandTrack(HandState.UNTRACKED)
    orient = np.asarray(hand["global_orient_camspace"], float)[span]
    wrist = np.asarray(hand["joints_camspace"], float)[span, 0]
    rot, wrist = pose_to_first_camera(first_to_camera, orient, wrist)
    theta = np.asarray(hand["hand_pose"], float)[span]
    keep = valid[:, None]
    return HandTrack(
        state=HandState.LABELLED,
        valid=valid,
        theta=np.where(keep[..., None], _axis_angle(theta), 0).astype(np.float32),
        rot=np.where(keep, _axis_angle(rot), 0).astype(np.float32),
        wrist=np.where(keep, wrist, 0).astype(np.float32),
        beta=np.asarray(hand["beta"], np.float32),
    )


def _axis_angle(matrices: np.ndarray) -> np.ndarray:
    return matrix_to_axis_angle(torch.from_numpy(np.ascontiguousarray(matrices))).numpy()
