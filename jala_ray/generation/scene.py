"""Where generated motion takes place: a picture, a video or a manifest's clip, its camera, and when each frame is shown."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from jala_ray import storage
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.samples.source import BadRow, Look, ManifestSource
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.generation.generator import Generator, chosen_hands, length, read_picture
from jala_ray.generation.motion import Motion
from jala_ray.generation.prompt import prompt_of, words
from jala_ray.hands.camera import ASSUMED_FOV_DEG, camera_of_view
from jala_ray.storage import StorageOptions
from jala_ray.types import MODEL_FPS, WILD_TIME_SCALE, Camera, Clip, ConfigError, Hand, HandState, UserError
from jala_ray.video.decode import VideoReader

Task = Literal["generation", "continuation"]


@dataclass(frozen=True)
class View:
    """What is told of a camera: full intrinsics, an angle, or nothing."""

    fov_deg: float | None = None
    """Field of view of the longer side, degrees."""
    intrinsics: tuple[float, float, float, float] | None = None
    """fx, fy, cx, cy in pixels of the upright video."""

    def camera(self, width: int, height: int) -> Camera:
        """Of a picture of that size; without anything told, `ASSUMED_FOV_DEG` is assumed. Raises `UserError`."""
        if self.intrinsics is not None:
            return Camera(*self.intrinsics, width, height)
        return camera_of_view(width, height, self.fov_deg or ASSUMED_FOV_DEG)

    @property
    def told(self) -> bool:
        return self.intrinsics is not None or self.fov_deg is not None


@dataclass(frozen=True)
class Scene:
    """A span of a video, or a still picture, that motion is drawn over."""

    video: str
    """Its file: a video, local or s3://, or a picture."""
    camera: Camera
    """Of the upright video or picture, in its pixels."""
    assumed: bool
    """Nobody told the camera: its angle is `ASSUMED_FOV_DEG`."""
    still: bool = False
    """A picture."""
    start_s: float = 0.0
    """Presentation time at which the motion begins, seconds."""
    end_s: float = np.inf
    """What the video shows from here on is another scene."""
    time_scale: float = WILD_TIME_SCALE
    """Source seconds of one second of motion."""
    clip: Clip | None = None
    """The manifest's clip, where it is one: it may know how the camera moves."""

    def beta(self, hand: Hand) -> np.ndarray:
        """(10,) MANO shape of a hand: the clip's where it is known, else the mean shape."""
        if self.clip is not None and self.clip.hands[hand].state is HandState.LABELLED:
            return np.array(self.clip.hands[hand].beta, np.float32)
        return np.zeros(10, np.float32)

    def times(self, frames: int) -> np.ndarray:
        """(T,) presentation times in the video of `frames` model frames, seconds."""
        return self.start_s + np.arange(frames) / MODEL_FPS * self.time_scale


def video_scene(
    video: str | os.PathLike[str],
    view: View | None = None,
    start_s: float = 0.0,
    time_scale: float = WILD_TIME_SCALE,
    options: StorageOptions | None = None,
) -> Scene:
    """The scene of a video from `start_s` on, or of a picture. Raises `UserError` for a file that is neither."""
    if time_scale <= 0:
        raise UserError("time scale", time_scale, "source seconds for a second of motion, above 0")
    view, address = view or View(), storage.absolute(video)
    if (picture := read_picture(address)) is not None:
        height, width = picture.shape[:2]
        return Scene(address, view.camera(width, height), not view.told, still=True)
    with VideoReader(address, options=options) as reader:
        info = reader.info
    end = info.start_s + info.duration_s
    if not 0 <= start_s < end:
        raise UserError("start", start_s, f"seconds of the video, 0 to {end:.2f}")
    return Scene(address, view.camera(info.width, info.height), not view.told, False, start_s, np.inf, time_scale)


def clip_scene(clip: Clip, view: View | None = None, options: StorageOptions | None = None) -> Scene:
    """The scene of a manifest's clip. A view that is told stands above the clip's own camera. Raises `UserError` without a video."""
    view = view or View()
    if clip.video_uri is None:
        raise UserError(
            f"video of clip {clip.clip_id}", None, "a video", "Motion-only clips have no picture to begin with."
        )
    span = (False, clip.start_s, clip.end_s, clip.time_scale, clip)
    if clip.camera is not None and not view.told:
        return Scene(clip.video_uri, clip.camera, False, *span)
    with VideoReader(clip.video_uri, options=options) as reader:
        info = reader.info
    return Scene(clip.video_uri, view.camera(info.width, info.height), not view.told, *span)


@dataclass(frozen=True)
class Asked:
    """What is asked of a clip; what is None is as the clip has it."""

    text: str | None = None
    seconds: float | None = None
    hands: str | None = None
    task: Task = "generation"


def find_row(manifest: Manifest, clip_id: str | None, task: Task = "generation") -> int:
    """The first row of a clip. For None the first one with a video that the task can be done for, a held-out one where there is one.

    Raises `ConfigError` where there is none.
    """
    names = ("clip_id", "split", "has_video", "n_chunks", "left_labelled", "right_labelled")
    columns = {name: manifest.index[name].to_pylist() for name in names}
    ids = columns["clip_id"]
    if clip_id is None:
        least = 2 if task == "continuation" else 1
        rows = [row for row, n in enumerate(columns["n_chunks"]) if columns["has_video"][row] and n >= least]
        if task == "continuation":
            sides = [columns["left_labelled"], columns["right_labelled"]]
            rows = [row for row in rows if any(side[row] and side[row][0] for side in sides)]
        if not rows:
            expected = "a clip with a video" + (", hand poses and two seconds" if task == "continuation" else "")
            raise ConfigError("manifest", manifest.path, expected)
        return min(rows, key=lambda row: columns["split"][row] != "val")
    if clip_id not in ids:
        raise ConfigError(
            "clip", clip_id, f"a clip_id of {manifest.path}", f"Its first is {ids[0] if ids else 'none'}."
        )
    return ids.index(clip_id)


def generate_clip(model: Generator, manifest: Manifest, row: int, asked: Asked) -> tuple[Motion, str, Clip]:
    """Motion for a manifest's row, labelled or not; with the text that asked for it, and the clip.

    Asked nothing else, it is what an evaluation generates for the row. Continuation is given the true motion of the first half of
    the clip's seconds. Raises `UserError` for a row that can't be read, or has no text, and for a continuation without labels.
    """
    source = ManifestSource(manifest.base, model.assets, model.options)
    (sample,) = source.samples([PlanRow(0, 0, row, manifest.address(row))])
    if isinstance(sample, BadRow):
        raise sample.error
    clip = sample.clip
    assert clip is not None
    (pictures,) = source.pictures([Look(sample, [0] if model.recipe.layout.frames else [])])
    if isinstance(pictures, UserError):
        raise pictures
    text = asked.text or (sample.instructions[0] if len(sample.instructions) else "")
    if not text:
        raise UserError("text", text, "an instruction", f"Clip {clip.clip_id} has none: say one with --text.")
    seconds = sample.labelled.shape[1] if asked.seconds is None else asked.seconds
    given = sample.labelled.shape[1] // 2 if asked.task == "continuation" else 0
    if asked.task == "continuation" and not given:
        raise UserError("task", asked.task, "a clip of two seconds or more", "Its first half is what is continued.")
    if asked.hands is not None:
        sample = replace(sample, states=_states(chosen_hands(asked.hands)))
    count, chunks = length(seconds)
    prompt = prompt_of(sample, pictures, given)
    prompt = replace(prompt, chunks=chunks, text=words(text, chunks, prompt.hands, given))
    return model.batch([prompt])[0].first(count), text, clip


def _states(hands: tuple[Hand, ...]) -> tuple[HandState, HandState]:
    left, right = (HandState.UNTRACKED if hand in hands else HandState.ABSENT for hand in Hand)
    return left, right
