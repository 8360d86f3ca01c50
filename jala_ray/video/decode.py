"""The frames of a video that a player shows at given times, decoding little more than those.

Times are seconds on the file's own presentation timeline, as a player shows it: edit lists are applied, and a
video whose first frame carries 1.5 s begins at 1.5 s. The frame shown at t is the last one whose presentation
time is at most t (within half a tick of the file's clock, and within a millisecond); before the first frame it
is the first, up to one frame after the last it is the last. docs/video.md says what becomes of odd files.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from jala_ray.storage import MissingFile, RangeFile, StorageOptions, is_s3, local_path, open_file
from jala_ray.types import StorageError, VideoError
from jala_ray.video.finder import FrameFinder
from jala_ray.video.local_file import LocalVideo
from jala_ray.video.picture import MAX_PIXELS, Picture

T = TypeVar("T")

MAX_DURATION_S = 48 * 3600.0
"""A header that promises more is damaged; whoever went through such a video second by second would never end."""

NO_DURATION = ("asf", "mpeg")
"""Containers of which libavformat gives every stream the file's own duration, or one guessed from the last pack that has a time."""

_ANY_TAGS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""PyAV 18 opens no file with a tag that is not UTF-8 unless it is told so; 19 keeps any tag byte for byte, and has no such argument."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header, its first frame and, where the header tells no duration of the pictures, its last packets say.

    Headers may lie about the duration; frames are the truth.
    """

    width: int
    """Pixels, upright, counted as square ones."""
    height: int
    fps: float
    """Average frames per second."""
    start_s: float
    """Presentation time of the first frame."""
    duration_s: float
    """From the beginning of the first frame to the end of the last."""
    rotation: int
    """Degrees counter-clockwise by which stored frames are turned for display: 0, 90, 180 or 270."""
    codec: str
    mirrored: bool = False
    """Whether stored frames are flipped left to right before they are turned."""


def probe(uri: str | os.PathLike[str], options: StorageOptions | None = None) -> VideoInfo:
    """Open a video and decode its first frame. Raises VideoError if there is none to decode."""
    with VideoReader(uri, options=options) as reader:
        return reader.info


def decode_frames(
    uri: str | os.PathLike[str],
    times_s: Sequence[float] | np.ndarray,
    options: StorageOptions | None = None,
) -> np.ndarray:
    """The frames shown at `times_s` (M,), any order, as (M, H, W, 3) uint8 upright RGB. Raises VideoError."""
    with VideoReader(uri, options=options) as reader:
        return reader.read(times_s)


def main_stream(container: InputContainer) -> VideoStream | None:
    """The video stream that is shown where a file has several: libavformat's choice, as in ffplay. A cover
    picture is none.
    """
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        return None
    return cast("VideoStream", stream)


def open_video(uri: str | os.PathLike[str], options: StorageOptions | None = None) -> LocalVideo | RangeFile:
    """The bytes of a video, as a demuxer wants them. Raises MissingFile, OSError, StorageError and `StoreUnavailable`."""
    if is_s3(uri):
        return cast("RangeFile", open_file(uri, "rb", options))
    return LocalVideo(local_path(uri), options)


def open_container(file: LocalVideo | RangeFile) -> InputContainer:
    """The demuxer of a file's bytes, whatever the encoding of its tags. Raises av's own errors for what is no video."""
    return av.open(file, "r", **_ANY_TAGS)


class VideoReader:
    """An open video, local or s3://, for one ask or several; use it in a `with` block or close it.

    A remote video is read by ranges as the demuxer asks for them, never as a whole. `threads` is the
    decoder's; one suits many readers side by side, as in a data pipeline. Raises VideoError for what is wrong
    with the video, StorageError and `StoreUnavailable` for a store, or a mount, that cannot be reached.
    """

    def __init__(self, uri: str | os.PathLike[str], *, options: StorageOptions | None = None, threads: int = 1) -> None:
        self.uri = os.fspath(uri)
        with contextlib.ExitStack() as opened, self._explained("open"):
            self._container = opened.enter_context(open_container(self._source(opened, options)))
            stream = main_stream(self._container)
            if stream is None:
                raise self._error("no video stream", "a file with video")
            self._stream = stream
            if self._stream.codec_context is None:
                raise self._error("an unknown codec", "a video that decodes")
            self._stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            self._stream.codec_context.thread_count = threads
            # Threads over frames report an error some frames late: it would not be known which one is damaged.
            self._stream.codec_context.thread_type = "SLICE"
            self._finder = FrameFinder(self._container, self._stream, self.uri)
            self._resources = opened.pop_all()

    def _source(self, opened: contextlib.ExitStack, options: StorageOptions | None) -> LocalVideo | RangeFile:
        kind = "object" if is_s3(self.uri) else "file"
        try:
            file = opened.enter_context(open_video(self.uri, options))
        except MissingFile as error:
            raise self._error(f"no such {kind}", "an existing video") from error
        if file.size == 0:
            raise self._error(f"an empty {kind}", "a video")
        return file

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file and the decoder."""
        self._resources.close()

    @property
    def decoded(self) -> int:
        """Frames decoded so far, shown or not."""
        return self._finder.decoded

    @functools.cached_property
    def info(self) -> VideoInfo:
        """Facts about the video; decodes the first frame if nothing has been decoded yet."""
        with self._explained("decode the first frame of"):
            first = self._picture(self._finder.first())
            start_s = self._finder.time_s(first.frame)
            height, width = first.size
            duration_s = self._duration(start_s)
            if not 0 <= duration_s <= MAX_DURATION_S:
                remedy = "Its header is damaged: remux it."
                raise self._error(f"a duration of {duration_s:.0f} s", f"at most {MAX_DURATION_S:.0f} s", remedy)
            return VideoInfo(
                width,
                height,
                self._finder.fps,
                start_s,
                duration_s,
                90 * first.turns,
                self._codec(),
                first.mirrored,
            )

    def _duration(self, start_s: float) -> float:
        if self._stream.duration and self._container.format.name not in NO_DURATION:
            return self._stream.duration * self._finder.tick_s
        # The container's duration is that of its longest stream, often the sound: it only tells where to look.
        promised = self._container.duration
        return self._finder.end_s(promised / 1e6 if promised else None) - start_s

    def _codec(self) -> str:
        return self._stream.codec_context.codec.canonical_name

    def read(self, times_s: Sequence[float] | np.ndarray) -> np.ndarray:
        """The frames shown at `times_s` (M,), in any order, as (M, H, W, 3) uint8 upright RGB."""
        images = self.each(times_s, Picture.rgb)
        if len({image.shape for image in images}) > 1:
            raise self._error("frames of several sizes", "frames of one size", "Ask for the times of one size at once.")
        if not images:
            return np.zeros((0, self.info.height, self.info.width, 3), np.uint8)
        return np.stack(images)

    def frame_times(self) -> np.ndarray:
        """(T + 1,) when each frame is shown, ascending, and when the last one ends, seconds. Reads every packet, decodes none."""
        with self._explained("read"):
            times, end = self._finder.times_s()
        return np.array([*times, end], np.float64)

    def each(
        self, times_s: Sequence[float] | np.ndarray, convert: Callable[[Picture], T], *, end_s: float = math.inf
    ) -> list[T]:
        """`convert(picture)` for every time, in the order of `times_s` (M,).

        One pass in order of time; a picture shown at several of the times is converted once and its result
        repeated. Where the video goes on at `end_s`, what it shows from there on is another scene: times from there on
        give the last frame shown before (method.md 1).
        """
        times = np.asarray(times_s, dtype=np.float64)
        if times.ndim != 1 or not np.isfinite(times).all():
            raise VideoError(f"times in {self.uri}", times_s, "a flat list of finite seconds")
        results: dict[int, T] = {}
        shown, result = None, None
        for place in np.argsort(times, kind="stable"):
            with self._explained("decode"):
                frame = self._finder.at(float(times[place]), end_s)
                if frame is not shown:
                    shown, result = frame, convert(self._picture(frame))
            results[int(place)] = result  # type: ignore[assignment]
        return [results[place] for place in range(len(times))]

    def _picture(self, frame: av.VideoFrame) -> Picture:
        return Picture(frame, float(self._stream.sample_aspect_ratio or 1))

    def _error(self, value: str, expected: str, remedy: str = "") -> VideoError:
        return VideoError(f"video {self.uri}", value, expected, remedy)

    @contextlib.contextmanager
    def _explained(self, operation: str) -> Iterator[None]:
        """Turn av's errors into VideoErrors; a store that fails is no fault of the video and stays a
        StorageError.
        """
        try:
            yield
        except (VideoError, StorageError):
            raise
        except (FFmpegError, OSError, EOFError) as error:
            message = f"cannot {operation} it: {error.strerror if isinstance(error, FFmpegError | OSError) else error}"
            raise self._error(message, "a video that decodes", "The file is damaged or not a video.") from error
