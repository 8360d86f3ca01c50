"""Generated hands over the video that they belong to, as an mp4 of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jala_ray import storage
from jala_ray.generation.generator import read_picture
from jala_ray.generation.motion import Motion
from jala_ray.generation.scene import Scene, View, video_scene
from jala_ray.hands.camera import ASSUMED_FOV_DEG, project, transform_points
from jala_ray.reports.kit.clip_videos import BACKGROUND, FAR, cameras_at
from jala_ray.reports.kit.overlay import draw_hands
from jala_ray.storage import StorageOptions
from jala_ray.types import MODEL_FPS, WILD_TIME_SCALE, Hand, UserError
from jala_ray.video.decode import VideoReader
from jala_ray.video.write import write_mp4

HEIGHT = 360
"""px of the drawn picture, where nothing else is asked for."""
CRF = 20
INK = (226, 230, 234)

Sides = Mapping[Hand, np.ndarray]


def draw_motion(
    motion: Motion,
    video: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    fov_deg: float | None = None,
    intrinsics: tuple[float, float, float, float] | None = None,
    start_s: float = 0.0,
    time_scale: float = WILD_TIME_SCALE,
    height: int = HEIGHT,
) -> None:
    """Write an mp4 of a motion's hands over the video (or picture) that it was generated from.

    The camera is `intrinsics` (fx, fy, cx, cy in px of the upright video), or one whose longer side sees `fov_deg` degrees; without
    either 60 degrees are assumed, and the video says so. `start_s` and `time_scale` as in `video_scene`; `height` of the picture in
    px. Raises UserError for an angle or size that cannot be, VideoError for a video that does not decode.
    """
    scene = video_scene(video, View(fov_deg, intrinsics), start_s, time_scale)
    write_drawn(scene, project_motion(motion, scene), out, height=height)


def project_motion(motion: Motion, scene: Scene) -> dict[Hand, np.ndarray]:
    """Hand -> (T, 21, 2) joints in pixels of the upright video, NaN behind the camera.

    Where the clip knows how the camera moves, each frame is seen from where the camera then is; else the camera stands still.
    """
    frames = motion.features.shape[1]
    moves = None
    if scene.clip is not None:
        moves = cameras_at(scene.clip, np.arange(frames) / MODEL_FPS * scene.time_scale)
    found = {}
    for hand in motion.hands:
        joints = motion.joints(hand, scene.beta(hand)).astype(np.float64)
        found[hand] = project(scene.camera, joints if moves is None else transform_points(moves, joints))
    return found


def frames_inside(pixels: np.ndarray, scene: Scene) -> int:
    """Frames of (T, 21, 2) px in which some joint of the hand is inside the picture."""
    inside = (pixels >= 0) & (pixels < [scene.camera.width, scene.camera.height])
    return int(inside.all(-1).any(-1).sum())


def write_drawn(
    scene: Scene,
    pixels: Sides,
    out: str | os.PathLike[str],
    *,
    text: str = "",
    height: int = HEIGHT,
    options: StorageOptions | None = None,
) -> None:
    """Write the scene's frames with hands at `pixels` (T, 21, 2) of the video over them, 15 per second of model time, to a local mp4."""
    if height < 2 or height % 2:
        raise UserError("height", height, "an even number of px")
    width = 2 * round(height * scene.camera.width / scene.camera.height / 2)
    frames = len(next(iter(pixels.values())))
    scale = np.array([width / scene.camera.width, height / scene.camera.height])
    note = f"camera assumed: {ASSUMED_FOV_DEG:g}° field of view" if scene.assumed else ""
    strip = _strip(width, [text, note])

    def images() -> Iterator[np.ndarray]:
        for t, picture in enumerate(_pictures(scene, frames, (height, width), options)):
            hands = {hand: _near(joints[t] * scale, width, height) for hand, joints in pixels.items()}
            yield np.concatenate([np.asarray(draw_hands(Image.fromarray(picture), hands)), strip])

    write_mp4(Path(storage.local_path(out)), images(), MODEL_FPS, crf=CRF, gop=3 * MODEL_FPS)


def _near(points: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.where(np.abs(points) < FAR * max(width, height), points, np.nan)


def _pictures(scene: Scene, frames: int, size: tuple[int, int], options: StorageOptions | None) -> Sequence[np.ndarray]:
    """(H, W, 3) pictures of all model frames; the last one of a video that ends before is held."""
    if scene.still:
        picture = read_picture(scene.video)
        assert picture is not None
        height, width = size
        return [np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))] * frames
    with VideoReader(scene.video, options=options) as reader:
        end = reader.info.start_s + reader.info.duration_s
        return reader.each(np.minimum(scene.times(frames), end), lambda shown: shown.rgb(size), end_s=scene.end_s)


def _strip(width: int, lines: Sequence[str], size: int = 13) -> np.ndarray:
    """(h, width, 3) with the lines that say something, cut where they are too long; h = 0 without any."""
    shown = [line for line in lines if line]
    step = 2 * (size // 2 + 4)  # even, as an mp4's height is
    image = Image.new("RGB", (width, step * len(shown)), BACKGROUND)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for number, line in enumerate(shown):
        while draw.textlength(line, font) > width - 12 and len(line) > 1:
            line = line[:-2].rstrip() + "…"
        draw.text((6, number * step + 2), line, INK, font)
    return np.asarray(image)
