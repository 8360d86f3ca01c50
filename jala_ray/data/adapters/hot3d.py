"""HOT3D (Aria and Quest 3): both hands' poses, headset trajectory, no video that can be read here.

HOT3D gives hands twice: as UmeTrack joint angles, and as 15 principal components of MANO. The components mean nothing
without MANO's own files, which nobody may pass on. So MANO is fitted to UmeTrack's joints, for which the sequence's
umetrack_hand_user_profile.json is needed; or, with `mano`, the components are expanded by the user's own MANO.

The pictures are in recording.vrs, which is not read: rows are motion alone unless a video of the camera lies beside
it. docs/guides/own_data.md says which files are needed and how good the fits are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from jala_ray import storage
from jala_ray.data.adapters import hot3d_files as files_of
from jala_ray.data.adapters.base import ADAPTERS, each_of, parsing, pieces, split_of, unreachable
from jala_ray.data.adapters.hot3d_umetrack import ANGLES, Skeleton
from jala_ray.data.adapters.listing import Listing, list_folder
from jala_ray.data.manifest.rows import clip_id
from jala_ray.data.manifest.writing import Rejection
from jala_ray.hands.camera import compose_rigid, first_camera_from_extrinsics, invert_rigid, pose_to_first_camera
from jala_ray.types import HAND_NAMES, Camera, Clip, Domain, Hand, HandState, HandTrack, UserError
from jala_ray.video.decode import VideoInfo, probe

CAMERAS = {"Aria": "camera-rgb", "Quest3": "camera-slam-left"}
"""Per headset, the camera in whose first frame a clip's motion is given, unless an option names another."""
MARKS = (files_of.HEADSET, files_of.UMETRACK, files_of.MANO)
"""Files by any of which a folder is a sequence."""
PCA = 15
"""Principal components of MANO's hand pose in HOT3D."""
UPRIGHT = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]])
"""Camera as mounted -> upright camera. Both headsets' cameras lie on their side: up in the world is left in the raw
picture, and a quarter turn clockwise rights it, as Aria's vrs_to_mp4 does it.
"""
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class HandTrajectory:
    """One hand over a sequence's T moments, in world coordinates. A hand without a usable frame has none."""

    valid: np.ndarray
    theta: np.ndarray
    """(T, 15, 3) rad."""
    rotation: np.ndarray
    """(T, 3, 3)."""
    wrist: np.ndarray
    """(T, 3) the wrist joint, m."""
    beta: np.ndarray
    confidence: float


@ADAPTERS.register("hot3d", place=4)
@dataclass(frozen=True)
class Hot3d:
    """Lab clips of 10 s at most, both hands, in the frame of an upright headset camera."""

    folder: str
    """Folder with the sequences, one folder each."""
    mano: str | None = None
    """Folder with your MANO_LEFT.pkl and MANO_RIGHT.pkl (or their npz): take HOT3D's own MANO poses, don't fit."""
    camera: str | None = None
    """camera-rgb, camera-slam-left or camera-slam-right; None: Aria's RGB, Quest 3's left SLAM camera."""
    video: str = "recording.mp4"
    """Name of that camera's upright video in a sequence's folder; sequences without one are motion alone."""
    focal_px: float | None = None
    """Focal length of the videos, px, if they have been undistorted to a pinhole camera; None: rows get no camera."""
    instruction: str = "Handle the objects in front of you with both hands."
    """HOT3D has no texts."""
    min_confidence: float = 0.65
    """UmeTrack poses of less confidence are not valid."""
    max_residual_m: float = 0.015
    """Frames whose joints the fitted hand misses by more than this on average are not valid."""
    iterations: int = 100
    """Gradient steps of the fit."""
    val_fraction: float = 0.0
    """Share of sequences held out for validation."""

    name: ClassVar[str] = "hot3d"
    domain: ClassVar[Domain] = "lab"

    def clips(self) -> Iterator[Clip | Rejection]:
        if self.camera is not None and self.camera not in files_of.STREAMS:
            raise UserError("camera", self.camera, f"one of {sorted(files_of.STREAMS)}")
        split_of("", self.val_fraction)
        listing = list_folder(self.folder)
        sequences, faults = sequences_in(listing), list(unreachable(self.name, listing, *MARKS))
        if not sequences and not faults:
            expected = f"a folder with HOT3D sequences ({', '.join(MARKS)})"
            raise UserError("folder", self.folder, expected, "Check the path.")
        models = None if self.mano is None else load_mano(self.mano)

        def read(sequence: str) -> Iterator[Clip]:
            place = listing.address(sequence) if sequence else listing.folder
            return self._sequence(place, sequences[sequence], models)

        yield from each_of(self.name, listing, sequences, "a whole HOT3D sequence", read)
        yield from faults

    def _sequence(self, place: str, files: Sequence[str], models: tuple[Arrays, Arrays] | None) -> Iterator[Clip]:
        sequence, label = self._identity(place, files)
        _require(place, files, files_of.HEADSET, "where the headset was")
        time_ns, device = files_of.read_headset(storage.join(place, files_of.HEADSET))
        camera = compose_rigid(device, files_of.camera_in_device(place, files, label)[None])
        world_to_camera = compose_rigid(UPRIGHT[None], invert_rigid(camera))
        usable = np.ones(len(time_ns), bool)
        if files_of.QA_MASK in files:
            faults = files_of.failed_qa(storage.join(place, files_of.QA_MASK), files_of.STREAMS[label])
            usable = ~files_of.nearest(faults, time_ns)[1]
        how = (place, files, time_ns, usable)
        hands = self._fitted(*how) if models is None else _expanded(*how, models)
        time_s = (time_ns - time_ns[0]) / 1e9
        fps = float(1 / np.median(np.diff(time_s)))
        whole_s = float(time_s[-1]) + 1 / fps
        info = self._video(place, files, whole_s)
        begin_s = info.start_s if info else 0.0
        for start_s, end_s in pieces(0.0, min(whole_s, info.duration_s) if info else whole_s, 1.0):
            frames = _frames(time_s, start_s, end_s, fps)
            if not frames.any():
                continue
            start_s = float(time_s[frames][0])
            left, right = (_track(hands[side], frames, world_to_camera) for side in Hand)
            yield Clip(
                clip_id=clip_id(self.name, sequence, start_s, end_s, label),
                source=self.name,
                domain=self.domain,
                split=split_of(sequence, self.val_fraction),
                task_type="generation",
                video_uri=storage.join(place, self.video) if info else None,
                start_s=begin_s + start_s,
                end_s=begin_s + end_s,
                fps=info.fps if info else fps,
                time_scale=1.0,
                instructions=(self.instruction,),
                description="",
                camera=self._pinhole(info),
                pose_time_s=(time_s[frames] - start_s).astype(np.float32),
                hands=(left, right),
                extrinsics=first_camera_from_extrinsics(world_to_camera[frames]).astype(np.float32),
            )

    def _identity(self, place: str, files: Sequence[str]) -> tuple[str, str]:
        """The recording's name, the same wherever its folder lies, and the label of the camera to use."""
        _require(place, files, files_of.METADATA, "the recording's name and headset")
        uri = storage.join(place, files_of.METADATA)
        metadata = files_of.read_json(uri)
        with parsing(uri, f"recording_name, and headset, one of {sorted(CAMERAS)}"):
            return str(metadata["recording_name"]), self.camera or CAMERAS[metadata["headset"]]

    def _fitted(
        self, place: str, files: Sequence[str], time_ns: np.ndarray, usable: np.ndarray
    ) -> list[HandTrajectory | None]:
        """Both hands by fitting MANO to UmeTrack's joints."""
        import torch

        from jala_ray.hands.fitting import Descent, fit_mano
        from jala_ray.hands.rotations import axis_angle_to_matrix

        remedy = "Download it, or pass --mano with your MANO files; without either there are no finger rotations."
        _require(place, files, files_of.PROFILE, "the person's UmeTrack skeleton", remedy)
        _require(place, files, files_of.UMETRACK, "UmeTrack's hand poses")
        profile = storage.join(place, files_of.PROFILE)
        skeleton = Skeleton.of_profile(files_of.read_json(profile), profile)
        poses = files_of.read_hands(storage.join(place, files_of.UMETRACK), "joint_angles", ANGLES, time_ns)
        motions: list[HandTrajectory | None] = []
        for side in Hand:
            hand = poses[side]
            tracked = hand.tracked & usable & (hand.confidence >= self.min_confidence)
            if not tracked.any():
                motions.append(None)
                continue
            joints = skeleton.pose(hand.values, hand.rotation, hand.position, side)
            fit = fit_mano(joints, tracked, side, descent=Descent(self.iterations))
            valid = fit.residual_m <= self.max_residual_m  # NaN, a frame left out, compares False
            rotation = axis_angle_to_matrix(torch.from_numpy(fit.rot.astype(np.float64))).numpy()
            confidence = float(hand.confidence[tracked].mean())
            motions.append(HandTrajectory(valid, fit.theta, rotation, fit.wrist, fit.beta, confidence))
        return motions

    def _video(self, place: str, files: Sequence[str], duration_s: float) -> VideoInfo | None:
        """The sequence's video, if it has one and that lasts as long as the recording (within two frames)."""
        if self.video not in files:
            return None
        info = probe(storage.join(place, self.video))
        if abs(info.duration_s - duration_s) > 2 / info.fps:
            expected = f"the recording's {duration_s:.2f} s"
            remedy = "Give the camera's whole recording at its own speed."
            raise UserError(f"{place}/{self.video}", f"{info.duration_s:.2f} s", expected, remedy)
        return info

    def _pinhole(self, info: VideoInfo | None) -> Camera | None:
        """The camera of an undistorted video: centred, as the toolkit's linear camera is."""
        if info is None or self.focal_px is None:
            return None
        centre = (info.width - 1) / 2, (info.height - 1) / 2
        return Camera(self.focal_px, self.focal_px, *centre, info.width, info.height)


def sequences_in(listing: Listing) -> dict[str, list[str]]:
    """Sequence folders below a folder, sorted: name relative to it ("" for itself) -> files inside."""
    files = list(listing.sizes)
    names = sorted({file.rpartition("/")[0] for file in files if file.rpartition("/")[2] in MARKS})
    inside = {name: f"{name}/" if name else "" for name in names}
    return {name: [f.removeprefix(inside[name]) for f in files if f.startswith(inside[name])] for name in names}


def load_mano(folder: str) -> tuple[Arrays, Arrays]:
    """(left, right) MANO arrays of a local folder with official pickles, else npz. Raises UserError.

    The official left model's shape directions are mirrored wrongly in x. HOT3D's betas are for the repaired model, so
    it is repaired here, by the toolkit's test, unless that has been done.
    """
    left, right = (_load_side(Path(folder), side) for side in Hand)
    if np.abs(left["shapedirs"][:, 0] - right["shapedirs"][:, 0]).sum() < 1:
        left["shapedirs"][:, 0] *= -1
    return left, right


def _load_side(folder: Path, side: Hand) -> Arrays:
    from jala_ray.hands.convert import convert_mano
    from jala_ray.hands.mano import load_asset

    pickled = folder / f"MANO_{HAND_NAMES[side].upper()}.pkl"
    return convert_mano(pickled, side) if pickled.is_file() else load_asset(folder, side)


def _expanded(
    place: str, files: Sequence[str], time_ns: np.ndarray, usable: np.ndarray, models: tuple[Arrays, Arrays]
) -> list[HandTrajectory | None]:
    """Both hands from HOT3D's MANO coefficients: absolute fingers, and the wrist joint transl + J0(beta)."""
    import torch

    from jala_ray.hands.mano import ManoHand

    _require(place, files, files_of.MANO, "MANO hand poses")
    poses = files_of.read_hands(storage.join(place, files_of.MANO), "pose", PCA, time_ns)
    motions: list[HandTrajectory | None] = []
    for side in Hand:
        hand, model = poses[side], models[side]
        valid = hand.tracked & usable
        theta = model["hands_mean"] + hand.values @ model["hands_components"][:PCA]
        # MANO turns about its first joint, which therefore stays where the shape puts it.
        beta = hand.beta.astype(np.float32)
        wrist = hand.position + ManoHand(model).rest_joints(torch.from_numpy(beta))[0].numpy()
        motion = HandTrajectory(valid, theta.reshape(-1, 15, 3), hand.rotation, wrist, beta, 1.0)
        motions.append(motion if valid.any() else None)
    return motions


def _frames(time_s: np.ndarray, start_s: float, end_s: float, fps: float) -> np.ndarray:
    """(T,) bool: frames of a piece, from the last one at or before its start, unless that is in a gap."""
    first = max(0, int(np.searchsorted(time_s, start_s + 1e-6, side="right")) - 1)
    if start_s - time_s[first] > 1.25 / fps:
        first += 1
    return (np.arange(len(time_s)) >= first) & (time_s < end_s - 1e-6)


def _track(motion: HandTrajectory | None, frames: np.ndarray, world_to_camera: np.ndarray) -> HandTrack:
    """The hand of one piece, in the camera of its first frame."""
    import torch

    from jala_ray.hands.rotations import matrix_to_axis_angle

    if motion is None or not motion.valid[frames].any():
        return HandTrack(HandState.UNTRACKED)
    first, valid = world_to_camera[frames][0], motion.valid[frames]
    keep = valid[:, None]
    rotation, wrist = pose_to_first_camera(invert_rigid(first)[None], motion.rotation[frames], motion.wrist[frames])
    return HandTrack(
        state=HandState.LABELLED,
        valid=valid,
        theta=np.where(keep[..., None], motion.theta[frames], 0).astype(np.float32),
        rot=np.where(keep, matrix_to_axis_angle(torch.from_numpy(rotation)).numpy(), 0).astype(np.float32),
        wrist=np.where(keep, wrist, 0).astype(np.float32),
        beta=motion.beta,
        confidence=motion.confidence,
    )


def _require(
    place: str, files: Sequence[str], file: str, what: str, remedy: str = "Download it with the sequence."
) -> None:
    """Raises UserError unless the sequence has the file."""
    if file not in files:
        raise UserError(f"{place}/{file}", "no such file", what, remedy)
