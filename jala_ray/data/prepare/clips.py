"""The raw clips of one video -> training clips: cut, transcoded, each with a file and a packet index of its own (method.md 1, 11)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Literal, get_args

from jala_ray import storage
from jala_ray.data.manifest.writing import Rejection
from jala_ray.data.prepare.segments import by_length, by_shots, by_validity, cut_clip
from jala_ray.storage import StorageOptions
from jala_ray.types import (
    CHUNK_FRAMES,
    CHUNK_SECONDS,
    MAX_CLIP_SECONDS,
    MODEL_FPS,
    Clip,
    ConfigError,
    StorageError,
    UserError,
    VideoError,
)
from jala_ray.video.frames import index_boundaries
from jala_ray.video.packets import PacketScan
from jala_ray.video.shots import shot_cuts
from jala_ray.video.transcode import FailedSpan, TranscodeSpan, transcode_spans
from jala_ray.video.write import Encoding

Cut = Literal["validity", "shots"]
Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]


@dataclass(frozen=True)
class PrepareConfig:
    """How clips are cut and written."""

    short_side: int = 448
    """Pixels of a clip's shorter side at most; nothing is enlarged."""
    crf: int = 23
    """x264's constant rate factor: lower is larger and better."""
    preset: Preset = "veryfast"
    """x264's speed: slower makes smaller files of the same quality."""
    cut: tuple[Cut, ...] = ()
    """Cut where labels begin and end (validity), at shot cuts (shots), or both, before cutting to 10 s of model time."""

    def __post_init__(self) -> None:
        if self.short_side < 16:
            raise ConfigError("short_side", self.short_side, "at least 16 px")
        if not 0 <= self.crf <= 51:
            raise ConfigError("crf", self.crf, "0 to 51")
        if self.preset not in get_args(Preset):
            raise ConfigError("preset", self.preset, f"one of {', '.join(get_args(Preset))}")
        if unknown := set(self.cut) - set(get_args(Cut)):
            raise ConfigError("cut", sorted(unknown), f"some of {', '.join(get_args(Cut))}")


@dataclass
class ClipMaker:
    """Makes the training clips of one video, and counts what it writes.

    What is wrong with a video becomes a `Rejection`; a store that cannot be reached raises StorageError.
    """

    settings: PrepareConfig
    folder: str
    """Where the videos go, local or s3://."""
    video: str
    """The raw video's name, the same on every machine: the names of the files follow from it and their times."""
    scratch: Path
    """A local folder for the file being written."""
    options: StorageOptions | None = None
    seconds: float = 0.0
    """Of source time written so far."""
    bytes: int = 0

    def make(self, raw: Iterable[Clip | Rejection]) -> Iterator[Clip | Rejection]:
        """The training clips of raw ones, which all are of this video, or have none and are passed on as they are.

        Raw clips may be of any length. Parts that lost a task's labels, and so became copies of another row's part, are left out.
        """
        parts: list[tuple[Clip, bool]] = []
        for clip in raw:
            if isinstance(clip, Rejection) or clip.video_uri is None or clip.n_chunks < 1:
                yield clip  # Motion alone has nothing to make; what is too short the manifest's writer sets aside.
                continue
            try:
                found = self._cut(clip, clip.video_uri)
            except UserError as error:
                if isinstance(error, StorageError) and not isinstance(error, storage.MissingFile):
                    raise
                yield _rejection(clip, str(error))
                continue
            if not found:
                yield _rejection(clip, f"a stretch of {CHUNK_SECONDS:g} s of model time between cuts")
            parts += [(part, part.task_type == clip.task_type) for part in found]
        for _, group in groupby(sorted(_without_copies(parts), key=_rate), key=_rate):
            yield from self._transcoded(list(group))

    def _cut(self, clip: Clip, uri: str) -> list[Clip]:
        spans = [(clip.start_s, clip.end_s)]
        if "shots" in self.settings.cut:
            cuts = shot_cuts(uri, clip.start_s, clip.end_s, options=self.options)
            spans = by_shots(spans[0], cuts)
        if "validity" in self.settings.cut:
            spans = [part for span in spans for part in by_validity(clip, span)]
        if spans == [(clip.start_s, clip.end_s)] and clip.model_seconds <= MAX_CLIP_SECONDS + 1 / MODEL_FPS:
            return [clip]  # It keeps its name.
        return [cut_clip(clip, *part) for span in spans for part in by_length(span, clip.time_scale)]

    def _transcoded(self, clips: list[Clip]) -> Iterator[Clip | Rejection]:
        """Clips of one rate, each with a file of its own; clips of the same span share one."""
        rate, uri = _rate(clips[0]), clips[0].video_uri
        assert uri is not None
        spans = {(clip.start_s, clip.end_s): self._span(clip, rate) for clip in clips}
        results = transcode_spans(
            uri,
            list(spans.values()),
            rate,
            encoding=Encoding(CHUNK_FRAMES, self.settings.crf, self.settings.preset),
            short_side=self.settings.short_side,
            options=self.options,
        )
        shortened: list[Clip] = []
        for result in results:
            span = result.span
            mine = [clip for clip in clips if (clip.start_s, clip.end_s) == (span.start_s, span.end_s)]
            if isinstance(result, FailedSpan):
                for clip in mine:
                    kept = _before_damage(clip, result.frames)
                    shortened += kept
                    begin = kept[0].end_s if kept else clip.start_s
                    yield _rejection(clip, f"frames from {begin:.2f} to {clip.end_s:.2f} s: {result.error}")
            else:
                yield from self._stored(mine, Path(span.path), rate)
        if shortened:
            yield from self._transcoded(shortened)

    def _span(self, clip: Clip, rate: Fraction) -> TranscodeSpan:
        what = json.dumps([self.video, clip.start_s, clip.end_s, str(rate)], ensure_ascii=False)
        name = hashlib.blake2b(what.encode(), digest_size=8).hexdigest()
        return TranscodeSpan(clip.start_s, clip.end_s, self.scratch / f"{name}.mp4")

    def _stored(self, clips: list[Clip], file: Path, rate: Fraction) -> Iterator[Clip | Rejection]:
        """Bring a finished file to its place; the clips that it is of, indexed."""
        uri, length = storage.join(self.folder, file.name[:2], file.name), clips[0].end_s - clips[0].start_s
        # The source's own rate where that is lower: it says how far poses may lie outside the span.
        moved = [
            replace(clip, video_uri=uri, start_s=0.0, end_s=length, fps=min(float(rate), clip.fps), packets=None)
            for clip in clips
        ]
        try:
            index = index_boundaries(PacketScan(file), moved[0])
        except VideoError as error:
            yield from (_rejection(clip, str(error)) for clip in clips)
            return
        storage.write_bytes(uri, file.read_bytes(), self.options)
        self.seconds += length
        self.bytes += file.stat().st_size
        file.unlink()
        yield from (replace(clip, packets=index) for clip in moved)


def _rate(clip: Clip) -> Fraction:
    """Frames per second of source time: 15 of model time."""
    return MODEL_FPS / Fraction(clip.time_scale).limit_denominator(1000)


def _without_copies(parts: list[tuple[Clip, bool]]) -> list[Clip]:
    """Parts without those that took another task (False) under which the same part is there already."""
    taken = {(part.clip_id, part.task_type) for part, kept_task in parts if kept_task}
    found = []
    for part, kept_task in parts:
        key = (part.clip_id, part.task_type)
        if kept_task or key not in taken:
            found.append(part)
        taken.add(key)
    return found


def _before_damage(clip: Clip, frames: int) -> list[Clip]:
    """The whole chunks of a pure video of which only the first `frames` can be had.

    Words and labels of other tasks are of the whole: what a cut-off one shows may not be what it says.
    """
    chunks = (frames - 1) // CHUNK_FRAMES
    if clip.task_type != "pure_video" or chunks < 1:
        return []
    return [cut_clip(clip, clip.start_s, clip.start_s + chunks * CHUNK_SECONDS * clip.time_scale)]


def _rejection(clip: Clip, reason: str) -> Rejection:
    return Rejection(clip.clip_id, clip.source, clip.video_uri, reason)
