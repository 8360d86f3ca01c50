"""Short videos of evaluated clips, side by side: what the model was shown, the true hands, the generated ones.

The generated hand is drawn over the true moving video, so that the eye compares it with the real one; the model itself sees the
first frame alone.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from jala_ray import storage
from jala_ray.data.manifest.table import Manifest
from jala_ray.evaluation.records import ClipRecord, Evaluation
from jala_ray.hands.camera import project, scale_camera, transform_points
from jala_ray.hands.resample import model_times
from jala_ray.hands.rotations import slerp
from jala_ray.reports.kit.overlay import BONES, SUPERSAMPLE, data_uri, draw_hands
from jala_ray.storage import StorageOptions
from jala_ray.types import CHUNK_FRAMES, MODEL_FPS, Clip, Hand, StorageError, UserError, VideoError
from jala_ray.video.decode import VideoReader
from jala_ray.video.write import write_mp4

HEIGHT = 168
"""px of a panel."""
MAX_HEIGHT = 200
"""Higher pictures have thicker bones."""
PAD = 5
"""px that a drawn hand reaches beyond its joints, at most."""
SECONDS = 6.0
"""Of model time shown, at most."""
TRUE_COLOR = (236, 239, 242)
"""Of the true hands where generated ones lie over them."""
BACKGROUND = (24, 28, 32)
GAP = 4
"""px between panels."""
MARGIN = 0.08
"""Of a panel without a camera, left free on each side."""
LEAST_EXTENT_M = 0.12
"""A panel without a camera shows at least so much: a hand held still does not fill it."""
FAR = 20
"""A joint further outside than so many picture sizes is not drawn."""
CRF = 27
GOP = 3 * MODEL_FPS
POSTER_QUALITY = 70

Sides = Mapping[Hand, np.ndarray]
"""Hand -> joints of all frames, (T, 21, 3) m or (T, 21, 2) px, NaN where there is nothing to draw."""


@dataclass(frozen=True)
class Panel:
    caption: str
    width: int
    """px."""


@dataclass(frozen=True)
class ClipVideo:
    """The video of one clip with the motion of one row of the table, or why there is none."""

    clip_id: str
    row: str
    panels: tuple[Panel, ...] = ()
    """From the left, `GAP` px apart."""
    mp4: bytes = b""
    """H.264, 4:2:0, the index in front, 15 frames per second of model time, no sound."""
    poster: str = ""
    """The middle frame as a JPEG data URI."""
    height: int = 0
    frames: int = 0
    total: int = 0
    """Frames of the clip, T = 15 N; the video shows the first `frames` of them."""
    problem: str | None = None

    @property
    def width(self) -> int:
        """px, all panels and gaps."""
        return sum(panel.width for panel in self.panels) + GAP * (len(self.panels) - 1)

    @property
    def uri(self) -> str:
        return "data:video/mp4;base64," + base64.b64encode(self.mp4).decode()


def picked_videos(
    manifest: Manifest,
    evaluation: Evaluation,
    picked: Sequence[Mapping[str, object]],
    *,
    height: int = HEIGHT,
    seconds: float = SECONDS,
) -> list[ClipVideo]:
    """The videos of picked clips (each with a `clip_id` and the table's `row`), every pair once.

    Raises UserError for a clip that the evaluation does not hold. A clip that was evaluated in several tasks is shown in its first.
    """
    records, videos = by_clip(evaluation), []
    for clip_id, row in dict.fromkeys((str(pick["clip_id"]), str(pick["row"])) for pick in picked):
        if clip_id not in records:
            raise UserError("picked clip", clip_id, "a clip that was evaluated")
        record = records[clip_id]
        clip, how = manifest.clip(record.row), {"height": height, "seconds": seconds, "options": manifest.options}
        videos.append(clip_video(clip, record, row, **how))
    return videos


def by_clip(evaluation: Evaluation) -> dict[str, ClipRecord]:
    """The first record of every clip that was evaluated."""
    records: dict[str, ClipRecord] = {}
    for record in evaluation.clips:
        if record.failure is None:
            records.setdefault(record.clip_id, record)
    return records


def clip_video(
    clip: Clip,
    record: ClipRecord,
    row: str,
    *,
    height: int = HEIGHT,
    seconds: float = SECONDS,
    options: StorageOptions | None = None,
) -> ClipVideo:
    """The side-by-side video of a clip's first `seconds` of model time, panels `height` px high (even).

    Panels: the first frame; the video with the true hands; the video with the hands of table row `row`, over thin true ones. A clip
    without a camera has the plain video, and hands seen from the front and from above instead. A video that cannot be read, or a clip
    whose evaluation failed, gives a `problem`. Raises UserError for a record of another clip, an unknown row, and a height that is odd
    or above 200.
    """
    if record.clip_id != clip.clip_id:
        raise UserError("record", record.clip_id, f"the record of clip {clip.clip_id}")
    if not 2 <= height <= MAX_HEIGHT or height % 2:
        raise UserError("height", height, f"an even number of px, at most {MAX_HEIGHT}")
    if record.failure is not None or not record.hands:
        return ClipVideo(clip.clip_id, row, problem=record.failure or "no hand has a scored frame")
    for hand in record.hands:
        if row not in hand.predicted:
            raise UserError("row", row, f"one of {sorted(hand.predicted)}")
    total = record.chunks * CHUNK_FRAMES
    frames = min(total, max(1, round(seconds * MODEL_FPS)))
    at_s = model_times(record.chunks)[:frames] * clip.time_scale
    try:
        pictures = _pictures(clip, at_s, height, options)
    except (VideoError, StorageError) as error:
        return ClipVideo(clip.clip_id, row, problem=str(error))
    true = {hand.hand: _known(hand.true[:frames]) for hand in record.hands}
    generated = {hand.hand: _known(hand.predicted[row][:frames]) for hand in record.hands}
    if clip.camera is None:
        panels, columns = _without_camera(pictures, true, generated)
    else:
        panels, columns = _with_camera(clip, at_s, pictures, true, generated)
    images = [_beside(column) for column in columns]
    return ClipVideo(
        clip.clip_id,
        row,
        panels,
        _encode(images),
        data_uri(images[len(images) // 2], POSTER_QUALITY),
        height,
        frames,
        total,
    )


def cameras_at(clip: Clip, at_s: np.ndarray) -> np.ndarray | None:
    """(T, 3, 4) first camera -> camera at `at_s` (T,), source seconds after the clip's beginning; None: the camera is still.

    Between pose frames the camera turns and moves evenly; beyond them it stands.
    """
    if not len(clip.extrinsics):
        return None
    time = np.asarray(clip.pose_time_s, np.float64)
    after = np.searchsorted(time, at_s).clip(0, len(time) - 1)
    before = (after - 1).clip(0)
    gap = time[after] - time[before]
    part = np.where(gap > 0, (at_s - time[before]) / np.where(gap > 0, gap, 1.0), 0.0).clip(0, 1)
    poses = np.asarray(clip.extrinsics, np.float64)
    start, end = (torch.from_numpy(poses[i, :, :3]) for i in (before, after))
    turned = slerp(start, end, torch.from_numpy(part)).numpy()
    moved = (1 - part)[:, None] * poses[before, :, 3] + part[:, None] * poses[after, :, 3]
    return np.concatenate([turned, moved[..., None]], -1)


def draw_thin(image: Image.Image, joints: dict[Hand, np.ndarray]) -> Image.Image:
    """The image with each hand's bones as thin neutral lines; `joints` are (21, 2) px, NaN joints are left out."""
    layer = Image.new("RGBA", (image.width * SUPERSAMPLE, image.height * SUPERSAMPLE), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    for points in joints.values():
        for width, ink in ((2.2 * SUPERSAMPLE, (12, 14, 16, 110)), (SUPERSAMPLE, (*TRUE_COLOR, 255))):
            for a, b in BONES:
                if np.isfinite(points[[a, b]]).all():
                    draw.line([*(points[a] * SUPERSAMPLE), *(points[b] * SUPERSAMPLE)], fill=ink, width=round(width))
    layer = layer.resize(image.size, Image.Resampling.LANCZOS)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def _pictures(clip: Clip, at_s: np.ndarray, height: int, options: StorageOptions | None) -> list[Image.Image]:
    """The frames shown `at_s` (T,) source seconds after the clip's beginning, even in size."""
    if clip.video_uri is None:
        raise VideoError(f"video of clip {clip.clip_id}", None, "a video", "Motion-only clips have no frames.")
    with VideoReader(clip.video_uri, options=options) as reader:
        shape = reader.info if clip.camera is None else clip.camera
        width = max(2, 2 * round(height * shape.width / shape.height / 2))
        return reader.each(
            clip.start_s + at_s, lambda picture: Image.fromarray(picture.rgb((height, width))), end_s=clip.end_s
        )


def _known(joints: np.ndarray) -> np.ndarray:
    """Joints (T, 21, 3) with NaN where a frame has no pose: all zeros. Frames that are not scored may well have one."""
    known = np.isfinite(joints).all((1, 2)) & (joints != 0).any((1, 2))
    return np.where(known[:, None, None], joints, np.nan)


def _with_camera(
    clip: Clip, at_s: np.ndarray, pictures: Sequence[Image.Image], true: Sides, generated: Sides
) -> tuple[tuple[Panel, ...], Iterator[list[Image.Image]]]:
    """Captions, and the panels of every frame."""
    width, height = pictures[0].size
    assert clip.camera is not None
    camera, moves = scale_camera(clip.camera, width, height), cameras_at(clip, at_s)

    def pixels(joints: np.ndarray) -> np.ndarray:
        seen = project(camera, joints if moves is None else transform_points(moves, joints))
        return np.where(np.abs(seen) < FAR * max(width, height), seen, np.nan)

    true_px, generated_px = ({side: pixels(joints) for side, joints in found.items()} for found in (true, generated))

    def columns() -> Iterator[list[Image.Image]]:
        for t, picture in enumerate(pictures):
            real, made = _frame(true_px, t), _frame(generated_px, t)
            thin = _over(picture, real, draw_thin)
            yield [pictures[0], _over(picture, real, draw_hands), _over(thin, made, draw_hands)]

    captions = ("what the model is shown", "true hands", "generated hands, the true ones in white")
    return tuple(Panel(caption, width) for caption in captions), columns()


def _without_camera(
    pictures: Sequence[Image.Image], true: Sides, generated: Sides
) -> tuple[tuple[Panel, ...], Iterator[list[Image.Image]]]:
    """As `_with_camera`, with two orthographic views of the hands instead of overlays."""
    width, height = pictures[0].size
    # Camera axes are x right, y down, z forward: from above, what is further away is higher up.
    views = [(np.array([1.0, 0, 0]), np.array([0, 1.0, 0])), (np.array([1.0, 0, 0]), np.array([0, 0, -1.0]))]
    flat = [
        [{side: np.stack([j @ right, j @ down], -1) for side, j in found.items()} for found in (true, generated)]
        for right, down in views
    ]
    placed = [_fit(view, height) for view in flat]
    empty = Image.new("RGB", (height, height), BACKGROUND)

    def columns() -> Iterator[list[Image.Image]]:
        for t, picture in enumerate(pictures):
            thin = [_over(empty, _frame(real, t), draw_thin) for real, _ in placed]
            drawn = [_over(image, _frame(made, t), draw_hands) for image, (_, made) in zip(thin, placed, strict=True)]
            yield [pictures[0], picture, *drawn]

    captions = ("what the model is shown", "video", "from the front", "from above")
    return tuple(Panel(c, w) for c, w in zip(captions, (width, width, height, height), strict=True)), columns()


def _fit(view: Sequence[Sides], side_px: int) -> list[dict[Hand, np.ndarray]]:
    """Flat joints (T, 21, 2) m -> px of a square, one scale for all hands and frames."""
    every = [joints.reshape(-1, 2) for found in view for joints in found.values()]
    points = np.concatenate([np.zeros((0, 2)), *every])
    points = points[np.isfinite(points).all(1)]
    if not len(points):
        points = np.zeros((1, 2))
    low, high = points.min(0), points.max(0)
    scale = side_px * (1 - 2 * MARGIN) / max((high - low).max(), LEAST_EXTENT_M)
    return [{h: (joints - (low + high) / 2) * scale + side_px / 2 for h, joints in found.items()} for found in view]


def _over(
    image: Image.Image,
    joints: Mapping[Hand, np.ndarray],
    draw: Callable[[Image.Image, dict[Hand, np.ndarray]], Image.Image],
) -> Image.Image:
    """`draw(image, joints)` with the work done only where the hands are: their layers are three times larger than what they cover."""
    points = np.concatenate([np.zeros((0, 2)), *joints.values()])
    points = points[np.isfinite(points).all(1)]
    if not len(points):
        return image
    left, top = np.maximum(np.floor(points.min(0)) - PAD, 0).astype(int).tolist()
    right, bottom = np.minimum(np.ceil(points.max(0)) + PAD, image.size).astype(int).tolist()
    if left >= right or top >= bottom:
        return image
    drawn = draw(image.crop((left, top, right, bottom)), {side: px - [left, top] for side, px in joints.items()})
    image = image.copy()
    image.paste(drawn, (left, top))
    return image


def _frame(sides: Sides, t: int) -> dict[Hand, np.ndarray]:
    return {side: joints[t] for side, joints in sides.items()}


def _beside(panels: Sequence[Image.Image]) -> Image.Image:
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    image = Image.new("RGB", (width, panels[0].height), BACKGROUND)
    x = 0
    for panel in panels:
        image.paste(panel, (x, 0))
        x += panel.width + GAP
    return image


def _encode(images: Sequence[Image.Image]) -> bytes:
    with storage.scratch("clip") as folder:
        path = folder / "clip.mp4"
        write_mp4(path, (np.asarray(image) for image in images), MODEL_FPS, gop=GOP, crf=CRF, preset="slow")
        return path.read_bytes()
