"""Boundary frames of a few clips with the labelled hands drawn on them.

The fastest check that video, poses, camera and time agree.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from dataclasses import dataclass, field
from io import BytesIO
from itertools import zip_longest

import numpy as np
import torch
from PIL import Image, ImageDraw

from jala_ray.data.manifest.table import Manifest
from jala_ray.hands.camera import project, scale_camera
from jala_ray.hands.joints import MANO_PARENTS
from jala_ray.hands.mano import ManoHand, load_pair
from jala_ray.hands.rotations import axis_angle_to_matrix
from jala_ray.types import HAND_NAMES, Camera, Clip, Hand, HandState, UserError
from jala_ray.video.decode import probe
from jala_ray.video.frames import boundary_times, clip_frames

HAND_COLORS = {Hand.LEFT: (64, 196, 170), Hand.RIGHT: (255, 150, 54)}
BONES = [(joint, parent) for joint, parent in enumerate(MANO_PARENTS) if parent >= 0]
SUPERSAMPLE = 3
"""Pillow's lines have hard edges: draw larger, then shrink."""


@dataclass(frozen=True)
class Frame:
    """One boundary frame, drawn."""

    boundary: int
    """i: the frame stands at i seconds of model time; (i, i + 1) is the pair of chunk i + 1."""
    time_s: float
    """Presentation time in the source video."""
    image: Image.Image
    drawn: tuple[str, ...]
    """Names of the hands drawn."""


@dataclass(frozen=True)
class DrawnClip:
    clip: Clip
    frames: list[Frame] = field(default_factory=list)
    problem: str | None = None
    """Why there are no frames: the clip's video could not be read."""


def sample_frames(manifest: Manifest, k: int = 6, height: int = 300, boundaries: int = 5) -> list[DrawnClip]:
    """The first boundary frames v_0, v_1, ... of `k` clips, with the skeleton of every labelled hand.

    The choice is deterministic and takes turns between labelled and unlabelled, wild and lab, each spread
    over the manifest. `height` is in px, the width follows the video; at most `boundaries` frames per clip. A
    clip whose video fails becomes a `DrawnClip` with its `problem`.
    """
    hands = load_pair()
    samples = []
    for row in choose_clips(manifest, k):
        clip = manifest.clip(row)
        try:
            frames = draw_boundaries(clip, {side: hands[side] for side in Hand}, height, boundaries)
        except UserError as error:
            samples.append(DrawnClip(clip, problem=str(error)))
        else:
            samples.append(DrawnClip(clip, frames))
    return samples


def choose_clips(manifest: Manifest, k: int) -> list[int]:
    """Up to `k` rows with a video and a chunk: each clip once, labelled ones first.

    Kinds (labelled or not, domain) take turns.
    """
    index = manifest.index
    columns = {name: index[name].to_pylist() for name in ("clip_id", "domain", "has_video", "n_chunks")}
    states = list(zip(index["left_state"].to_pylist(), index["right_state"].to_pylist(), strict=True))
    kinds: dict[tuple[bool, str], list[int]] = defaultdict(list)
    seen = set()
    for row, clip_id in enumerate(columns["clip_id"]):
        if columns["has_video"][row] and columns["n_chunks"][row] and clip_id not in seen:
            seen.add(clip_id)
            kinds["labelled" not in states[row], columns["domain"][row]].append(row)
    spread = [
        [rows[i * len(rows) // min(k, len(rows))] for i in range(min(k, len(rows)))]
        for _, rows in sorted(kinds.items())
    ]
    return [row for turn in zip_longest(*spread) for row in turn if row is not None][:k]


def draw_boundaries(clip: Clip, hands: dict[Hand, ManoHand], height: int, boundaries: int) -> list[Frame]:
    """Decoded boundary frames of one clip with its labelled hands projected; raises `VideoError`."""
    times = boundary_times(clip)[:boundaries]
    camera = clip.camera
    if camera is None:
        assert clip.video_uri is not None
        info = probe(clip.video_uri)
        shape = info.width, info.height
    else:
        shape = camera.width, camera.height
    width = round(height * shape[0] / shape[1])
    pixels = clip_frames(clip, {"all": ((height, width), range(len(times)))})["all"]
    frames = []
    for i, (time_s, array) in enumerate(zip(times, pixels, strict=True)):
        image = Image.fromarray(np.ascontiguousarray(np.moveaxis(array, 0, -1)))
        joints = {}
        if camera is not None:
            scaled = scale_camera(camera, width, height)
            found = {side: project_hand(clip, side, float(time_s), hands[side], scaled) for side in Hand}
            joints = {side: points for side, points in found.items() if points is not None}
        frames.append(Frame(i, float(time_s), draw_hands(image, joints), tuple(HAND_NAMES[side] for side in joints)))
    return frames


def project_hand(clip: Clip, side: Hand, time_s: float, hand: ManoHand, camera: Camera) -> np.ndarray | None:
    """(21, 2) px of a hand's joints in the frame at `time_s` (presentation time), NaN behind the camera.

    None where the hand is not labelled or has no valid pose within one source frame of that time.
    """
    track = clip.hands[side]
    if track.state is not HandState.LABELLED or not len(clip.pose_time_s):
        return None
    gaps = np.abs(np.asarray(clip.pose_time_s, np.float64) - (time_s - clip.start_s))
    t = int(gaps.argmin())
    if gaps[t] > 1.01 / clip.fps or not track.valid[t]:
        return None
    with torch.no_grad():
        theta, rot, wrist, beta = (
            torch.from_numpy(np.array(a, np.float32))
            for a in (track.theta[t], track.rot[t], track.wrist[t], track.beta)
        )
        joints = hand(axis_angle_to_matrix(theta), axis_angle_to_matrix(rot), wrist, beta).joints
        if len(clip.extrinsics):
            extrinsic = torch.from_numpy(np.array(clip.extrinsics[t], np.float32))
            joints = joints @ extrinsic[:, :3].T + extrinsic[:, 3]
        return project(camera, joints).double().numpy()


def draw_hands(image: Image.Image, joints: dict[Hand, np.ndarray]) -> Image.Image:
    """The image with each hand's skeleton over it; `joints` are (21, 2) px, NaN joints are left out."""
    if not joints:
        return image
    scale = SUPERSAMPLE
    layer = Image.new("RGBA", (image.width * scale, image.height * scale), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    unit = scale * max(1.0, image.height / 200)
    for side, points in joints.items():
        points = points * scale
        color = HAND_COLORS[side]
        # A dark rim first, so that the skeleton reads on skin and on bright tables alike.
        for width, ink in ((2.4 * unit, (12, 14, 16, 170)), (1.3 * unit, (*color, 255))):
            for a, b in BONES:
                if np.isfinite(points[[a, b]]).all():
                    draw.line([*points[a], *points[b]], fill=ink, width=round(width))
            for point in points[np.isfinite(points).all(axis=1)]:
                radius = width * 0.85
                draw.ellipse([*(point - radius), *(point + radius)], fill=ink)
    layer = layer.resize(image.size, Image.Resampling.LANCZOS)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def data_uri(image: Image.Image, quality: int = 82) -> str:
    """The image as a JPEG data URI."""
    buffer = BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
