"""A user's own folder of videos, with an optional captions file -> in-the-wild pure video."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jala_ray import storage
from jala_ray.data.adapters.base import pieces, split_of, untracked_hands
from jala_ray.data.rows import clip_id
from jala_ray.data.writing import Rejection
from jala_ray.storage import StorageOptions
from jala_ray.types import WILD_TIME_SCALE, Clip, Domain, Split, StorageError, UserError, VideoError
from jala_ray.video.decode import VideoInfo, VideoReader

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")


@dataclass(frozen=True)
class Caption:
    """One line of a captions file. Times are seconds into the video; None means its beginning or end."""

    file: str
    text: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class FolderVideo:
    """A video of a folder, as the folder's listing and the captions tell, unopened."""

    name: str
    """Relative to the folder."""
    size: int | None
    """Bytes; None: captions name it and it is not there."""
    captions: tuple[Caption, ...]


@dataclass(frozen=True)
class VideoFolder:
    """Wild `pure_video` clips: both hands untracked, no poses needed."""

    folder: str
    """Folder (local or s3://) with videos, subfolders included."""
    captions: str | None = None
    """JSON lines {"file", "text", "start", "end"}; start and end may be left out."""
    instruction: str = "Use the hands as the activity in view requires"
    """Text of videos that no caption names."""
    val_fraction: float = 0.0
    """Share of videos held out for validation."""
    source: str = "video-folder"
    """The rows' `source`, to tell several folders apart."""

    name: ClassVar[str] = "video-folder"
    domain: ClassVar[Domain] = "wild"

    def clips(self) -> Iterator[Clip | Rejection]:
        for video in self.videos():
            if video.size is None:
                yield self.absent(video)
                continue
            try:
                with VideoReader(storage.join(self.folder, video.name)) as reader:
                    for span in self.spans(video, reader):
                        if isinstance(span, Rejection):
                            yield span
                            continue
                        for start, end in pieces(span.start_s, span.end_s, WILD_TIME_SCALE):
                            clip = self._clip(video.name, reader.info, start, end, list(span.instructions))
                            yield self._checked(clip, video.name, reader)
            except (VideoError, StorageError) as error:
                yield self.rejected(video.name, f"a video that opens: {error}")

    def videos(self, options: StorageOptions | None = None) -> list[FolderVideo]:
        """The videos of the folder and those that captions name, by name. Opens none of them."""
        sizes = {
            name: size
            for name, size in storage.list_files(self.folder, options).items()
            if name.lower().endswith(VIDEO_SUFFIXES)
        }
        if not sizes:
            suffixes = ", ".join(VIDEO_SUFFIXES)
            raise UserError("folder", self.folder, f"a folder with videos ({suffixes})", "Check the path.")
        captions: dict[str, list[Caption]] = {}
        for caption in read_captions(self.captions, options) if self.captions else ():
            captions.setdefault(caption.file, []).append(caption)
        return [
            FolderVideo(name, sizes.get(name), tuple(captions.get(name, [Caption(name, self.instruction)])))
            for name in sorted(sizes.keys() | captions.keys())
        ]

    def spans(self, video: FolderVideo, reader: VideoReader) -> Iterator[Clip | Rejection]:
        """One clip a caption, however long its span is."""
        for caption in video.captions:
            span = _span(caption, reader.info)
            if isinstance(span, str):
                yield self.rejected(video.name, span)
            else:
                yield self._clip(video.name, reader.info, *span, [caption.text])

    def _clip(self, file: str, info: VideoInfo, start_s: float, end_s: float, texts: list[str]) -> Clip:
        uri, split = storage.join(self.folder, file), split_of(file, self.val_fraction)
        return video_clip(uri, file, self.source, info, start_s, end_s, texts, split=split)

    def _checked(self, clip: Clip, file: str, reader: VideoReader) -> Clip | Rejection:
        """The clip, if its last frame can be decoded: a header may promise more than the file holds."""
        last_s = clip.end_s - 1 / clip.fps
        try:
            reader.read([max(clip.start_s, last_s)])
        except VideoError as error:
            span = f"{clip.start_s:.2f} to {clip.end_s:.2f} s"
            return self.rejected(file, f"frames from {span}: {error}", clip.clip_id)
        return clip

    def absent(self, video: FolderVideo) -> Rejection:
        """The record of captions whose video is not there."""
        return self.rejected(video.name, f"a video in {self.folder} (named in {self.captions})")

    def rejected(self, file: str, reason: str, identity: str | None = None) -> Rejection:
        """The record of a video or span that does not become a clip."""
        uri = storage.join(self.folder, file)
        identity = identity or clip_id(self.source, file, 0.0, 0.0, "rejected")
        return Rejection(identity, self.source, uri, reason)


def read_captions(uri: str, options: StorageOptions | None = None) -> list[Caption]:
    """Parse a captions file (JSON lines). Raises UserError that names the line and the key."""
    captions = []
    for number, line in enumerate(storage.read_bytes(uri, options).decode("utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{uri}, line {number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(where, line, f"a JSON object ({error})") from error
        if not isinstance(entry, dict):
            raise UserError(where, line, "a JSON object")
        if unknown := entry.keys() - {"file", "text", "start", "end"}:
            raise UserError(where, sorted(unknown), "only the keys file, text, start, end")
        for key in ("file", "text"):
            if not isinstance(entry.get(key), str) or not entry[key].strip():
                raise UserError(f"{where}, {key}", entry.get(key), "text")
        for key in ("start", "end"):
            value = entry.get(key)
            number_given = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number_given and math.isfinite(value) and value >= 0):
                raise UserError(f"{where}, {key}", value, "seconds into the video, >= 0")
        captions.append(Caption(**entry))
    return captions


def whole(info: VideoInfo) -> tuple[float, float]:
    """Presentation times of a video's beginning (0 at least) and end."""
    return max(0.0, info.start_s), info.start_s + info.duration_s


def video_clip(
    uri: str,
    name: str,
    source: str,
    info: VideoInfo,
    start_s: float,
    end_s: float,
    texts: list[str],
    *,
    split: Split,
) -> Clip:
    """A wild clip without labels: [start_s, end_s], presentation time, of the video `name` at `uri`."""
    return Clip(
        clip_id=clip_id(source, name, start_s, end_s, *texts),
        source=source,
        domain="wild",
        split=split,
        task_type="pure_video",
        video_uri=uri,
        start_s=start_s,
        end_s=end_s,
        fps=info.fps,
        time_scale=WILD_TIME_SCALE,
        instructions=tuple(texts),
        description="",
        camera=None,
        pose_time_s=np.zeros(0, np.float32),
        hands=untracked_hands(),
    )


def _span(caption: Caption, info: VideoInfo) -> tuple[float, float] | str:
    """Presentation times of a captioned span, or what is wrong with it."""
    first, last = whole(info)
    start = first if caption.start is None else first + caption.start
    end = last if caption.end is None else first + caption.end
    if end > last + 1.5 / info.fps:
        found = f"{caption.end:g} s (caption {caption.text!r})"
        return f"an end within the video's {last - first:.2f} s, not {found}"
    if end <= start:
        return f"a span with start before end, not {start:g} to {end:g} s (caption {caption.text!r})"
    return start, min(end, last)
