"""ARCTIC's bimanual sequences as DexMachina ships them: 21 joints per hand in world coordinates, no video.

The files hold no finger rotations, so MANO is fitted to the joints. Rows have no video: tokenizer data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from jala_ray import storage
from jala_ray.data.adapters.base import ADAPTERS, each_of, parsing, pieces, split_of, unreachable
from jala_ray.data.adapters.listing import list_folder
from jala_ray.data.manifest.rows import clip_id
from jala_ray.data.manifest.writing import Rejection
from jala_ray.hands.camera import transform_points
from jala_ray.hands.joints import convert_joints
from jala_ray.types import HAND_NAMES, Clip, Domain, Hand, HandState, HandTrack, UserError

if TYPE_CHECKING:
    from jala_ray.hands.fitting import FittedTrack
    from jala_ray.hands.mano import ManoHand

FPS = 30.0
"""The files carry no rate; ARCTIC was recorded at 30 frames per second and its sequences keep their lengths."""
CAMERA_BACK_M, CAMERA_UP_M = 0.4, 0.45
"""Where the stand-in camera is, seen from the midpoint of the wrists: about where the person's head was."""
_COMPOUND = ("espresso machine", "capsule machine", "waffle iron")
_SPACED = {thing.replace(" ", ""): thing for thing in _COMPOUND}


@ADAPTERS.register("arctic", place=3)
@dataclass(frozen=True)
class Arctic:
    """Lab clips of motion alone, 10 s at most, both hands labelled."""

    folder: str
    """Folder with the sequences (.npz)."""
    mano_folder: str | None = None
    """Folder with hand_left.npz and hand_right.npz; None for the hands that come with this package."""
    max_residual_m: float = 0.015
    """Frames whose joints the fitted hand misses by more than this on average are not valid."""
    iterations: int = 200
    """Gradient steps of the fit."""
    val_fraction: float = 0.0
    """Share of sequences held out for validation."""

    name: ClassVar[str] = "arctic"
    domain: ClassVar[Domain] = "lab"

    def clips(self) -> Iterator[Clip | Rejection]:
        from jala_ray.hands.mano import load_pair

        split_of("", self.val_fraction)  # A wrong option is refused before the first sequence.
        models, listing = load_pair(self.mano_folder), list_folder(self.folder)
        files = [file for file in listing.sizes if file.endswith(".npz")]
        faults = list(unreachable(self.name, listing, ".npz"))
        if not files and not faults:
            raise UserError("folder", self.folder, "a folder with ARCTIC sequences (.npz)", "Check the path.")

        def read(file: str) -> Iterator[Clip]:
            return self._sequence(file, instruction_of(file), read_joints(listing.address(file)), models)

        yield from each_of(self.name, listing, files, "a sequence of joints", read)
        yield from faults

    def _sequence(
        self, file: str, instruction: str, joints: np.ndarray, models: tuple[ManoHand, ManoHand]
    ) -> Iterator[Clip]:
        from jala_ray.hands.fitting import Descent, fit_mano

        fits = [
            fit_mano(joints[side], None, side, hand=models[side], descent=Descent(self.iterations)) for side in Hand
        ]
        axes = person_axes(joints[:, :, 0])
        for start_s, end_s in pieces(0.0, joints.shape[1] / FPS, 1.0):
            frames = slice(round(start_s * FPS), round(end_s * FPS))
            to_camera = stand_in_camera(joints[:, frames.start, 0].mean(0), axes)
            left, right = (self._track(fits[side], frames, to_camera) for side in Hand)
            yield Clip(
                clip_id=clip_id(self.name, file, start_s, end_s),
                source=self.name,
                domain=self.domain,
                split=split_of(file, self.val_fraction),
                task_type="generation",
                video_uri=None,
                start_s=start_s,
                end_s=end_s,
                fps=FPS,
                time_scale=1.0,
                instructions=(instruction,),
                description="",
                camera=None,
                pose_time_s=(np.arange(frames.stop - frames.start) / FPS).astype(np.float32),
                hands=(left, right),
            )

    def _track(self, fit: FittedTrack, frames: slice, to_camera: np.ndarray) -> HandTrack:
        import torch

        from jala_ray.hands.rotations import axis_angle_to_matrix, matrix_to_axis_angle

        valid = fit.residual_m[frames] <= self.max_residual_m  # NaN, a frame without joints, compares False
        if not valid.any():
            return HandTrack(HandState.UNTRACKED)
        keep = valid[:, None]
        turned = torch.from_numpy(to_camera[:, :3]) @ axis_angle_to_matrix(
            torch.from_numpy(fit.rot[frames].astype(np.float64))
        )
        wrist = transform_points(np.broadcast_to(to_camera, (len(valid), 3, 4)), fit.wrist[frames])
        return HandTrack(
            state=HandState.LABELLED,
            valid=valid,
            theta=np.where(keep[..., None], fit.theta[frames], 0).astype(np.float32),
            rot=np.where(keep, matrix_to_axis_angle(turned).numpy(), 0).astype(np.float32),
            wrist=np.where(keep, wrist, 0).astype(np.float32),
            beta=fit.beta,
        )


def read_joints(uri: str) -> np.ndarray:
    """Joints (2, T, 21, 3) of a sequence, left and right, MANO order, world frame, m. Raises UserError."""
    hands, content = [], storage.read_bytes(uri)
    with (
        parsing(uri, "an .npz with joints_left, joints_right"),
        np.load(BytesIO(content), allow_pickle=False) as arrays,
    ):
        for side in HAND_NAMES:
            joints = convert_joints(arrays[f"joints_{side}"], source="arctic", target="mano")
            hands.append(joints.astype(np.float64))
    if hands[0].shape != hands[1].shape or hands[0].ndim != 3 or not len(hands[0]):
        raise UserError(uri, [hand.shape for hand in hands], "as many frames, one or more, for both hands")
    return np.stack(hands)


def person_axes(wrists: np.ndarray) -> np.ndarray:
    """Rows right, forward, up (3, 3) of the person whose wrists (left, right) are (2, T, 3); z is up.

    Over a whole sequence the left wrist is on the left, even where hands cross for a while.
    """
    up = np.array([0.0, 0.0, 1.0])
    right = np.median(wrists[1] - wrists[0], axis=0) * (1, 1, 0)
    length = np.linalg.norm(right)
    right = right / length if length > 1e-6 else np.array([1.0, 0.0, 0.0])
    return np.stack([right, np.cross(up, right), up])


def stand_in_camera(target: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """World -> camera (3, 4) of a still camera at head height behind `target` (3,), looking at it."""
    right, forward, up = axes
    position = target - CAMERA_BACK_M * forward + CAMERA_UP_M * up
    ahead = (target - position) / np.linalg.norm(target - position)
    rotation = np.stack([right, np.cross(ahead, right), ahead])
    return np.concatenate([rotation, -(rotation @ position)[:, None]], 1)


def instruction_of(file: str) -> str:
    """What a sequence's name says: `s01_waffleiron_use_01.npz` -> "Use the waffle iron with both hands"."""
    match = re.fullmatch(r"(?:.*/)?s\d+_([a-z]+)_(use|grab)_\d+\.npz", file)
    if match is None:
        raise UserError("sequence name", file, "a name like s01_ketchup_use_01.npz")
    thing, verb = match.groups()
    return f"{verb.capitalize()} the {_SPACED.get(thing, thing)} with both hands"
