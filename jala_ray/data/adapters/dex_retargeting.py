"""The demonstration of dex-retargeting: a third-person video of hand gestures, and joints estimated from it.

The video is taken as unlabelled. The joints (MediaPipe's, right hand, one set for each frame) cannot label it: the
project expresses every frame's joints in a frame fixed to the palm, with the wrist at the origin and the middle
finger's knuckle on the z axis. So not only the wrist's position is lost but its rotation too, and without the
detector's picture coordinates neither can be had back. What is left are the finger rotations.

With `fingers`, these become rows of their own, motion alone, MANO fitted to the joints. The wrist, which a row must
have, stands still at a made-up place in front of the camera. Such rows are for the finger tokenizer. They are never
joined to the video, for a model would learn that the wrist doesn't move, and their `source` is one of its own, so
that they can be left out where wrists are counted.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from jala_ray import storage
from jala_ray.data.adapters.base import ADAPTERS, pieces, split_of
from jala_ray.data.adapters.video_folder import video_clip, whole
from jala_ray.data.manifest.rows import clip_id
from jala_ray.data.manifest.writing import Rejection
from jala_ray.hands.joints import convert_joints
from jala_ray.hands.unpickle import RestrictedUnpickler
from jala_ray.types import (
    WILD_TIME_SCALE,
    Clip,
    Domain,
    Hand,
    HandState,
    HandTrack,
    StorageError,
    UserError,
    VideoError,
)
from jala_ray.video.decode import probe

if TYPE_CHECKING:
    from jala_ray.hands.fitting import FittedTrack

VIDEO, JOINTS = "human_hand_video.mp4", "human_joint_right.pkl"
FINGERS_SOURCE = "dex-retargeting-fingers"
"""`source` of the rows whose wrist is made up."""
FPS = 30.0
"""The joints carry no times; they are one set for each of the video's frames."""
WRIST_M = (0.0, 0.0, 0.5)
"""Where the wrist stands in those rows, unturned: an arm's length before the camera, so that it is no outlier."""
DETECTION_CONFIDENCE = 0.8
"""The least that the project's script asks of MediaPipe."""


@ADAPTERS.register("dex-retargeting", place=5)
@dataclass(frozen=True)
class DexRetargeting:
    """Wild `pure_video` clips of one 20.7 s video; with `fingers` also motion alone, with made-up wrists."""

    folder: str
    """Folder that holds human_hand_video.mp4 and human_joint_right.pkl."""
    instruction: str = "Make a series of hand gestures in front of the camera."
    """Text of all clips."""
    val_fraction: float = 0.0
    """Share of videos held out for validation: 0 or 1 here."""
    fingers: bool = False
    """Add rows of the right hand's fingers for the finger tokenizer. Their wrist is a placeholder and doesn't move."""
    max_residual_m: float = 0.015
    """Frames whose joints the fitted hand misses by more than this on average are not valid."""
    iterations: int = 100
    """Gradient steps of the fit."""

    name: ClassVar[str] = "dex-retargeting"
    domain: ClassVar[Domain] = "wild"

    def clips(self) -> Iterator[Clip | Rejection]:
        yield from self._video_clips()
        if self.fingers:
            yield from self._finger_clips()

    def _video_clips(self) -> Iterator[Clip | Rejection]:
        uri = storage.join(storage.absolute(self.folder), VIDEO)
        try:
            info = probe(uri)
        except (VideoError, StorageError) as error:
            identity = clip_id(self.name, VIDEO, 0.0, 0.0, "rejected")
            yield Rejection(identity, self.name, uri, f"a video that opens: {error}")
            return
        split = split_of(VIDEO, self.val_fraction)
        for start, end in pieces(*whole(info), WILD_TIME_SCALE):
            yield video_clip(uri, VIDEO, self.name, info, (start, end), [self.instruction], split=split)

    def _finger_clips(self) -> Iterator[Clip | Rejection]:
        from jala_ray.hands.fitting import Descent, fit_mano

        uri = storage.join(storage.absolute(self.folder), JOINTS)
        try:
            joints = read_joints(uri)
            fit = fit_mano(joints, None, Hand.RIGHT, descent=Descent(self.iterations))
        except UserError as error:
            identity = clip_id(FINGERS_SOURCE, JOINTS, 0.0, 0.0, "rejected")
            yield Rejection(identity, FINGERS_SOURCE, uri, f"joints of a hand: {error}")
            return
        for start_s, end_s in pieces(0.0, len(joints) / FPS, WILD_TIME_SCALE):
            frames = slice(round(start_s * FPS), round(end_s * FPS))
            yield Clip(
                clip_id=clip_id(FINGERS_SOURCE, JOINTS, start_s, end_s),
                source=FINGERS_SOURCE,
                domain=self.domain,
                split=split_of(VIDEO, self.val_fraction),
                task_type="generation",
                video_uri=None,
                start_s=start_s,
                end_s=end_s,
                fps=FPS,
                time_scale=WILD_TIME_SCALE,
                instructions=(self.instruction,),
                description="",
                camera=None,
                pose_time_s=(np.arange(frames.stop - frames.start) / FPS).astype(np.float32),
                hands=(HandTrack(HandState.UNTRACKED), self._fingers(fit, frames)),
            )

    def _fingers(self, fit: FittedTrack, frames: slice) -> HandTrack:
        valid = fit.residual_m[frames] <= self.max_residual_m  # NaN, a frame without joints, compares False
        if not valid.any():
            return HandTrack(HandState.UNTRACKED)
        keep = valid[:, None]
        return HandTrack(
            state=HandState.LABELLED,
            valid=valid,
            theta=np.where(keep[..., None], fit.theta[frames], 0).astype(np.float32),
            rot=np.zeros((len(valid), 3), np.float32),
            wrist=np.where(keep, WRIST_M, 0).astype(np.float32),
            beta=fit.beta,
            confidence=DETECTION_CONFIDENCE,
        )


def read_joints(uri: str) -> np.ndarray:
    """Joints (T, 21, 3), MANO order, m, in the palm's frame; NaN where no hand was detected. Raises UserError.

    The pickle is a list with an array for each frame, or None; it is read without running what it may hold.
    """
    try:
        content = RestrictedUnpickler(io.BytesIO(storage.read_bytes(uri))).load()
        frames = [np.full((21, 3), np.nan) if frame is None else np.asarray(frame, float) for frame in content]
        joints = np.stack(frames)
    except StorageError:
        raise
    except Exception as error:  # a hostile or damaged pickle can fail in any way; all of them mean: refused
        raise UserError(uri, f"{type(error).__name__}: {error}", "a pickled list of (21, 3) joints") from error
    return convert_joints(joints, source="mediapipe", target="mano")
