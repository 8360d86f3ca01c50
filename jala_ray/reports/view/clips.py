"""Clips of a manifest: the video, MANO skeletons in the first camera's space, and in the picture where its camera is known."""

from __future__ import annotations

import numpy as np
import torch

from jala_ray.data.manifest.table import Manifest
from jala_ray.hands.camera import intrinsic_matrix, invert_rigid, project, scale_camera, transform_points
from jala_ray.hands.mano import ManoHand, load_pair
from jala_ray.hands.rotations import axis_angle_to_matrix
from jala_ray.reports.kit.overlay import HAND_COLORS, choose_clips
from jala_ray.reports.view.recording import ViewWriter, Wanted
from jala_ray.storage import StorageOptions
from jala_ray.types import HAND_NAMES, Camera, Clip, ConfigError, Hand, HandState
from jala_ray.video.decode import VideoReader

CAMERA, PICTURE = "camera", "picture"


def write_clips(writer: ViewWriter, address: str, wanted: Wanted, options: StorageOptions | None = None) -> None:
    """Raises `ConfigError` for numbers that are no rows, `UserError` for a clip whose video can't be read."""
    manifest, pair = Manifest(address, options), load_pair()
    if wanted.numbers and not 0 <= min(wanted.numbers) <= max(wanted.numbers) < len(manifest):
        raise ConfigError("numbers", wanted.numbers, f"rows of {address}, 0 to {len(manifest) - 1}")
    for row in wanted.numbers or choose_clips(manifest, wanted.most):
        write_clip(writer, manifest.clip(row), {side: pair[side] for side in Hand}, wanted, options)


def write_clip(
    writer: ViewWriter, clip: Clip, hands: dict[Hand, ManoHand], wanted: Wanted, options: StorageOptions | None = None
) -> None:
    name = clip.clip_id
    texts = [*clip.instructions, *([clip.description] if clip.description else [])]
    writer.words([name, "words"], "\n".join(texts) or "no words")
    camera = clip.camera
    if clip.video_uri is not None:
        camera = _video(writer, clip, wanted, options)
    if camera is not None:
        lens = writer.rr.Pinhole(
            image_from_camera=intrinsic_matrix(camera),
            resolution=[camera.width, camera.height],
            image_plane_distance=0.5,
        )
        writer.stream.log(writer.path(name, CAMERA), lens, static=True)
        _moves(writer, clip)
    for side, hand in hands.items():
        if clip.hands[side].state is HandState.LABELLED and len(clip.pose_time_s):
            writer.tab(name).space = writer.path(name)
            _hand(writer, clip, side, hand, camera)
    for signal, found in clip.signals.items():
        values = np.asarray(found.values, np.float64).reshape(len(found.values), -1)
        values = np.where(np.asarray(found.usable)[:, None], values, np.nan)
        writer.dimensions([name, signal], [str(i) for i in range(values.shape[1])], found.time_s, values)


def _video(writer: ViewWriter, clip: Clip, wanted: Wanted, options: StorageOptions | None) -> Camera | None:
    """The clip's pictures; its camera in pixels of what is shown."""
    assert clip.video_uri is not None
    with VideoReader(clip.video_uri, options=options) as reader:
        height, width = wanted.size(reader.info.height, reader.info.width)
        every = wanted.every(clip.fps) / clip.fps
        times = np.arange(0, clip.end_s - clip.start_s - 1e-6, every)
        pictures = reader.each(clip.start_s + times, lambda picture: picture.rgb((height, width)))
        for time_s, picture in zip(times, pictures, strict=True):
            writer.picture([clip.clip_id, CAMERA, PICTURE], time_s, picture)
    return None if clip.camera is None else scale_camera(clip.camera, width, height)


def _moves(writer: ViewWriter, clip: Clip) -> None:
    """Where the camera is, in its first frame's space."""
    for time_s, extrinsic in zip(clip.pose_time_s, clip.extrinsics, strict=False):
        pose = invert_rigid(np.asarray(extrinsic, np.float64))
        writer.at(time_s)
        moved = writer.rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3])
        writer.stream.log(writer.path(clip.clip_id, CAMERA), moved)


def _hand(writer: ViewWriter, clip: Clip, side: Hand, hand: ManoHand, camera: Camera | None) -> None:
    """Its skeleton at every valid pose frame; none from a frame on that is not valid."""
    joints, valid = hand_joints(clip, side, hand), np.asarray(clip.hands[side].valid, bool)
    pixels = None if camera is None else in_picture(clip, joints, camera)
    color, before = HAND_COLORS[side], False
    for t, time_s in enumerate(clip.pose_time_s):
        if valid[t] or before:
            shown = slice(None) if valid[t] else slice(0)
            writer.skeleton([clip.clip_id, HAND_NAMES[side]], time_s, joints[t, shown], color)
            if pixels is not None:
                writer.skeleton([clip.clip_id, CAMERA, PICTURE, HAND_NAMES[side]], time_s, pixels[t, shown], color)
        before = bool(valid[t])


def hand_joints(clip: Clip, side: Hand, hand: ManoHand) -> np.ndarray:
    """(T, 21, 3) m in the first frame's camera."""
    track = clip.hands[side]
    theta, rot, wrist, beta = (
        torch.from_numpy(np.array(a, np.float32)) for a in (track.theta, track.rot, track.wrist, track.beta)
    )
    with torch.no_grad():
        return hand.joints(axis_angle_to_matrix(theta), axis_angle_to_matrix(rot), wrist, beta).double().numpy()


def in_picture(clip: Clip, joints: np.ndarray, camera: Camera) -> np.ndarray:
    """(T, 21, 2) px, NaN behind the camera, which may move."""
    if len(clip.extrinsics):
        joints = transform_points(np.asarray(clip.extrinsics, np.float64), joints)
    return np.asarray(project(camera, joints))
