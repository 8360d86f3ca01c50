"""A user's own folder of videos, with an optional captions file -> in-the-wild pure video."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar

import numpy as np

from jala_ray import storage
from jala_ray.data.adapters.base import ADAPTERS, pieces, split_of, untracked_hands
from jala_ray.data.adapters.captions import Caption, by_file, read_captions
from jala_ray.data.adapters.listing import address_in, legible, list_folder
from jala_ray.data.manifest.rows import clip_id
from jala_ray.data.manifest.writing import Rejection
from jala_ray.progress import each
from jala_ray.storage import StorageOptions
from jala_ray.types import WILD_TIME_SCALE, Clip, Domain, Split, StorageError, UserError, VideoError
from jala_ray.video.decode import VideoInfo, VideoReader

VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mts", ".m2ts", ".ts", ".mpg", ".mpeg", ".vob", ".m2v"),
    *(".3gp", ".3g2", ".wmv", ".asf", ".flv", ".f4v", ".ogv", ".ogm", ".mxf", ".divx"),
)
"""Of files taken for videos, in any case. The others are counted and passed over."""
OVERRUN_S = 0.5
"""A caption may end so much past its video, and is cut to it: annotators round, and players differ by their last frames."""
NOTES_SHOWN = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderVideo:
    """A video of a folder, as the folder's listing and the captions tell, unopened."""

    name: str
    """Relative to the folder; escaped where it is no text."""
    size: int | None
    """Bytes; None: it cannot be had."""
    captions: tuple[Caption, ...]
    fault: str = ""
    """Why it cannot be had: what was expected."""


@ADAPTERS.register("video-folder", place=1)
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
        """As `Adapter.clips`. A video that the store refuses (StorageError) is set aside like one that does not open: a conversion is made
        anew as a whole. Preparing fails that video's piece instead, and only that is done again (`Preparation.do`).
        """
        notes: list[str] = []
        for video in each(self.videos(), "videos"):
            if video.fault:
                yield self.rejected(video.name, video.fault)
                continue
            try:
                with VideoReader(self.address(video.name)) as reader:
                    for span in self.spans(video, reader, notes):
                        if isinstance(span, Rejection):
                            yield span
                            continue
                        for start, end in pieces(span.start_s, span.end_s, WILD_TIME_SCALE):
                            clip = self._clip(video.name, reader.info, start, end, list(span.instructions))
                            yield self._checked(clip, video.name, reader)
            except (VideoError, StorageError) as error:
                yield self.rejected(video.name, f"a video that opens: {error}")
        if notes:
            _log.warning("%s", told(notes))

    def videos(self, options: StorageOptions | None = None) -> list[FolderVideo]:
        """The videos of the folder and those that captions name, by name. Opens none of them; says what it passes over."""
        split_of("", self.val_fraction)  # A wrong option is refused before the first video.
        listing = list_folder(self.folder, options)
        sizes = {name: size for name, size in listing.sizes.items() if _is_video(name)}
        faults = {name: why for name, why in listing.faults.items() if _is_video(name) or name.endswith("/")}
        passed_over = _by_suffix(listing.sizes.keys() - sizes.keys())
        if not sizes and not faults:
            remedy = f"Check the path: it holds {passed_over or 'nothing'}."
            raise UserError("folder", self.folder, f"a folder with videos ({', '.join(VIDEO_SUFFIXES)})", remedy)
        if passed_over:
            _log.warning("%s: passed over, as no videos by their names: %s", self.folder, passed_over)
        captions, absent = by_file(read_captions(self.captions, options) if self.captions else (), sizes)
        for name, meant in absent.items():
            hint = f"; perhaps {meant!r} is meant" if meant else ""
            why = f"a video in {self.folder} (named in {legible(self.captions or '')}{hint})"
            faults.setdefault(legible(name), why)
        whole_video = (Caption("", self.instruction),)
        found = {name: FolderVideo(name, size, tuple(captions.get(name, whole_video))) for name, size in sizes.items()}
        found |= {name: FolderVideo(name, None, (), fault) for name, fault in faults.items()}
        return [found[name] for name in sorted(found)]

    def address(self, name: str) -> str:
        """Of a video of the folder."""
        return address_in(storage.absolute(self.folder), name)

    def spans(
        self, video: FolderVideo, reader: VideoReader, notes: list[str] | None = None
    ) -> Iterator[Clip | Rejection]:
        """One clip a caption, however long its span is. `notes` takes a line for each that had to be cut to the video."""
        for caption in video.captions:
            span = _span(caption, reader.info)
            if isinstance(span, str):
                yield self.rejected(video.name, span)
                continue
            start, end, over = span
            if over and notes is not None:
                notes.append(f"{self.address(video.name)}: caption {caption.text!r} by {over:.2f} s")
            yield self._clip(video.name, reader.info, start, end, [caption.text])

    def _clip(self, file: str, info: VideoInfo, start_s: float, end_s: float, texts: list[str]) -> Clip:
        uri, split = self.address(file), split_of(file, self.val_fraction)
        return video_clip(uri, file, self.source, info, (start_s, end_s), texts, split=split)

    def _checked(self, clip: Clip, file: str, reader: VideoReader) -> Clip | Rejection:
        """The clip, if its last frame can be decoded: a header may promise more than the file holds."""
        last_s = clip.end_s - 1 / clip.fps
        try:
            reader.read([max(clip.start_s, last_s)])
        except VideoError as error:
            span = f"{clip.start_s:.2f} to {clip.end_s:.2f} s"
            return self.rejected(file, f"frames from {span}: {error}", clip.clip_id)
        return clip

    def rejected(self, file: str, reason: str, identity: str | None = None) -> Rejection:
        """The record of a video or span that does not become a clip."""
        identity = identity or clip_id(self.source, file, 0.0, 0.0, "rejected")
        return Rejection(identity, self.source, self.address(file), reason)


def whole(info: VideoInfo) -> tuple[float, float]:
    """Presentation times of a video's beginning (0 at least) and end."""
    return max(0.0, info.start_s), info.start_s + info.duration_s


def video_clip(
    uri: str,
    name: str,
    source: str,
    info: VideoInfo,
    span: tuple[float, float],
    texts: list[str],
    *,
    split: Split,
) -> Clip:
    """A wild clip without labels: a span (start, end), presentation time in seconds, of the video `name` at `uri`."""
    start_s, end_s = span
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


def _span(caption: Caption, info: VideoInfo) -> tuple[float, float, float] | str:
    """Presentation times of a captioned span and the seconds by which it was cut to the video, or what is wrong with it."""
    first, last = whole(info)
    start = first if caption.start is None else first + caption.start
    end = last if caption.end is None else first + caption.end
    frames = 1.5 / info.fps
    if end > last + max(OVERRUN_S, frames) + 1e-6:
        found = f"{caption.end:g} s (caption {caption.text!r})"
        return f"an end within the video's {last - first:.2f} s, not {found}"
    if min(end, last) <= start:
        return f"a span of the video with start before end, not {start:g} to {end:g} s (caption {caption.text!r})"
    return start, min(end, last), end - last if end - last > frames else 0.0


def told(notes: Sequence[str]) -> str:
    """What became of captions that end past their videos, in a few lines."""
    more = [f"and {len(notes) - NOTES_SHOWN} more"] if len(notes) > NOTES_SHOWN else []
    head = f"{len(notes)} captions end past their video, by {OVERRUN_S:g} s at most, and are cut to its end:"
    return "\n  ".join([head, *notes[:NOTES_SHOWN], *more])


def _is_video(name: str) -> bool:
    return name.lower().endswith(VIDEO_SUFFIXES)


def _by_suffix(names: Iterable[str]) -> str:
    """How many files there are of each suffix, most first."""
    counts = Counter(PurePosixPath(name).suffix.lower() or "without a suffix" for name in names)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
