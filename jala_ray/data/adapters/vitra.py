"""VITRA's episodes of Ego4D: egocentric video with MANO poses, camera, and instructions per hand.

An episode is a `.npy` that holds a pickled dict (`vitra_files`); its video lies beside it as `<video_name>.mp4`.
docs/manifest.md says what the fields turned out to mean.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jala_ray.data.adapters.base import ADAPTERS, each_of, split_of, unreachable
from jala_ray.data.adapters.listing import Listing, list_folder
from jala_ray.data.adapters.vitra_files import Episode, EpisodeHand, Range, instructed_ranges, read_episode
from jala_ray.data.manifest.rows import clip_id
from jala_ray.data.manifest.writing import Rejection
from jala_ray.hands.camera import (
    camera_from_matrix,
    first_camera_from_extrinsics,
    pose_to_first_camera,
    scale_camera,
)
from jala_ray.types import WILD_TIME_SCALE, Clip, Domain, Hand, HandState, HandTrack, UserError
from jala_ray.video.decode import VideoInfo, VideoReader

__all__ = ["Vitra", "instructed_ranges", "read_episode"]


@ADAPTERS.register("vitra", place=2)
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
        split_of("", self.val_fraction)  # A wrong option is refused before the first episode.
        listing = list_folder(self.folder)
        files = [file for file in listing.sizes if file.endswith(".npy")]
        faults = list(unreachable(self.name, listing, ".npy"))
        if not files and not faults:
            raise UserError("folder", self.folder, "a folder with VITRA episodes (.npy)", "Check the path.")
        shown = functools.lru_cache(maxsize=2)(_shown)  # Episodes of one video mostly lie next to each other.
        yield from each_of(self.name, listing, files, "an episode", lambda file: self._episode(listing, file, shown))
        yield from faults

    def _episode(
        self, listing: Listing, file: str, shown: Callable[[str], tuple[VideoInfo, np.ndarray]]
    ) -> Iterator[Clip | Rejection]:
        episode = Episode.read(listing.address(file))
        video = f"{episode.video}.mp4"
        uri = listing.address(video)
        info, times = shown(uri)
        camera = camera_from_matrix(episode.intrinsics, self.intrinsics_width, self.intrinsics_height)
        camera = scale_camera(camera, info.width, info.height)
        for frames, texts in episode.ranges.items():
            try:
                if not texts:
                    raise UserError("text", "", "an instruction")
                start_s, end_s, pose_time_s, extrinsics, hands = _motion(episode, frames, times)
            except UserError as error:  # The episode's other ranges are none the worse.
                identity = clip_id(self.name, file, frames[0], frames[1], "rejected")
                yield Rejection(identity, self.name, uri, f"frames {frames[0]} to {frames[1]} of an episode: {error}")
                continue
            yield Clip(
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
                camera=camera,
                pose_time_s=pose_time_s,
                hands=hands,
                extrinsics=extrinsics,
            )


def _shown(uri: str) -> tuple[VideoInfo, np.ndarray]:
    """A video's facts and `VideoReader.frame_times`; reads all of the video."""
    with VideoReader(uri) as reader:
        return reader.info, reader.frame_times()


def _motion(
    episode: Episode, frames: Range, times: np.ndarray
) -> tuple[float, float, np.ndarray, np.ndarray, tuple[HandTrack, HandTrack]]:
    """start_s, end_s, pose_time_s, extrinsics and hands of one range of an episode's frames.

    times (V + 1,): when each frame of the video is shown, and when the last one ends. A pose belongs to a frame, and so has its
    presentation time, whatever the video's rate.
    """
    span = slice(*frames)
    shown = episode.video_frame[span]
    if len(shown) != frames[1] - frames[0] or frames[0] < 0:
        raise UserError("text range", frames, f"within {len(episode.video_frame)} frames")
    if shown.min() < 0 or shown.max() >= len(times) - 1:
        expected = f"frames of the video, which has {len(times) - 1}"
        raise UserError("video_decode_frame", f"{shown.min()} to {shown.max()}", expected)
    time_s, end_s = times[shown], float(times[shown[-1] + 1])
    if (np.diff(time_s) <= 0).any():
        raise UserError("video_decode_frame", shown.tolist(), "frames that ascend")
    extrinsics = first_camera_from_extrinsics(episode.extrinsics[span])
    left, right = (_track(episode.hands[side], span, extrinsics) for side in Hand)
    pose_time_s = (time_s - time_s[0]).astype(np.float32)
    return float(time_s[0]), end_s, pose_time_s, extrinsics.astype(np.float32), (left, right)


def _track(hand: EpisodeHand, span: slice, first_to_camera: np.ndarray) -> HandTrack:
    valid = hand.valid[span]
    if not valid.any():
        return HandTrack(HandState.UNTRACKED)
    rot, wrist = pose_to_first_camera(first_to_camera, hand.orient[span], hand.wrist[span])
    keep = valid[:, None]
    return HandTrack(
        state=HandState.LABELLED,
        valid=valid,
        theta=np.where(keep[..., None], _axis_angle(hand.fingers[span]), 0).astype(np.float32),
        rot=np.where(keep, _axis_angle(rot), 0).astype(np.float32),
        wrist=np.where(keep, wrist, 0).astype(np.float32),
        beta=hand.beta,
    )


def _axis_angle(matrices: np.ndarray) -> np.ndarray:
    import torch

    from jala_ray.hands.rotations import matrix_to_axis_angle

    return matrix_to_axis_angle(torch.from_numpy(np.ascontiguousarray(matrices))).numpy()
