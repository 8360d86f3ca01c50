"""Cut a long video into small files, one a span, in one pass over the source (method.md 1, 11).

The pictures go from the decoder through one pass of libswscale to the encoder, never through RGB.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from jala_ray.storage import StorageOptions
from jala_ray.types import UserError, VideoError
from jala_ray.video.decode import VideoReader
from jala_ray.video.finder import EARLY_S
from jala_ray.video.picture import Picture, Size
from jala_ray.video.write import Encoding, Mp4Writer, frame_rate

UNSPECIFIED = 2
"""FFmpeg's number of a colour space that a file does not state."""
COMMON = (1, UNSPECIFIED, 5, 6)
"""FFmpeg's numbers of BT.709, of none, and of BT.601's two."""
_SCALE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND


@dataclass(frozen=True)
class TranscodeSpan:
    """A stretch of a video and the local file it shall become."""

    start_s: float
    """Presentation time in the source, seconds."""
    end_s: float
    path: str | os.PathLike[str]


@dataclass(frozen=True)
class Transcoded:
    """A span that was written."""

    span: TranscodeSpan
    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class FailedSpan:
    """A span that was not written, as its frames cannot be had, and why."""

    span: TranscodeSpan
    error: VideoError
    frames: int
    """How many of its frames, from its first on, can be had."""


def transcode_spans(
    uri: str | os.PathLike[str],
    spans: Sequence[TranscodeSpan],
    rate: float | Fraction,
    *,
    encoding: Encoding,
    short_side: int,
    options: StorageOptions | None = None,
) -> Iterator[Transcoded | FailedSpan]:
    """Write one mp4 a span, and yield what became of each as soon as it is known.

    Frame k of a file is the one that a player of the source shows at `start_s` + k / `rate`, by the rule of
    `VideoReader`; both ends belong to the span, so a span of N times `encoding.gop` frames has N * gop + 1, and a
    keyframe on each of its N + 1 chunk boundaries when a chunk has gop frames (`rate` = 15 / time scale). Where
    the source goes on at `end_s`, the frame there is the last one shown before: what begins there is another scene.
    Pictures are upright, their pixels square, their shorter side at most `short_side`, their sizes even; none
    is enlarged. Files are otherwise as `Mp4Writer` makes them: the same source gives the same bytes.

    The source is read once, in order of time, whatever the order of the spans, which may touch or overlap;
    what lies between them is not decoded, and jumped over where the file has an index. Damage fails the spans
    that need the damaged frames and no others. Writing a finished file under a name replaces what was there.

    Raises UserError for settings or spans that make no sense, StorageError for a source that cannot be
    reached and a file that cannot be written; then no unfinished file is left.
    """
    if short_side < 2:
        raise UserError("short_side", short_side, "at least 2 px")
    for span in spans:
        if not (math.isfinite(span.start_s) and math.isfinite(span.end_s) and span.start_s < span.end_s):
            raise UserError("span", (span.start_s, span.end_s), "finite seconds, start before end")
    if len({os.path.abspath(span.path) for span in spans}) < len(spans):
        raise UserError("paths of the spans", len(spans), "a file of its own for each span")
    exact = frame_rate(rate)
    source = _Source(uri, short_side, options)
    return _transcode(source, spans, exact, encoding)


def _transcode(
    source: _Source, spans: Sequence[TranscodeSpan], rate: Fraction, encoding: Encoding
) -> Iterator[Transcoded | FailedSpan]:
    writers: dict[int, Mp4Writer] = {}
    failed: set[int] = set()
    try:
        for frame_time in heapq.merge(*(_times(span, rate, place) for place, span in enumerate(spans))):
            _, place, time_s, last = frame_time
            if place in failed:
                continue
            span, writer = spans[place], writers.get(place)
            try:
                frame = source.at(time_s, span.end_s)
                size, color = _form(frame)
                if writer is None:
                    writer = writers[place] = Mp4Writer(span.path, size, rate, encoding, color)
                elif (size, color) != (writer.size, writer.colorspace):
                    shown = f"{size} {color.name} after {writer.size} {writer.colorspace.name}"
                    raise VideoError(f"frames of {source.uri}", shown, "one size and colour space throughout a span")
            except VideoError as error:
                failed.add(place)
                if writer is not None:
                    writers.pop(place).discard()
                yield FailedSpan(span, error, writer.count if writer is not None else 0)
                continue
            writer.add(frame)
            if last:
                writers.pop(place).close()
                yield Transcoded(span, writer.count, *writer.size)
    finally:
        source.close()
        for writer in writers.values():
            writer.discard()


def _times(span: TranscodeSpan, rate: Fraction, place: int) -> Iterator[tuple[float, int, float, bool]]:
    """A span's frames: when each is to be read, the span's place, the frame's presentation time, and whether it is the last."""
    start = Fraction(span.start_s)
    count = math.floor((Fraction(span.end_s) - start) * rate + Fraction(1, 1_000_000))
    for k in range(count + 1):
        time_s = float(start + k / rate)
        # What is shown before the end is read before what another span shows there: the source need not go back.
        yield min(time_s, span.end_s - 2 * EARLY_S), place, time_s, k == count


class _Source:
    """Frames of a video at times that ascend, ready to be encoded.

    After a failure the video is opened anew: the next frame is decoded from the keyframe that governs it, so
    nothing is built on damaged references.
    """

    def __init__(self, uri: str | os.PathLike[str], short_side: int, options: StorageOptions | None) -> None:
        self.uri, self._short_side, self._options = os.fspath(uri), short_side, options
        self._reader: VideoReader | None = None
        self._reformatter = VideoReformatter()
        self._decoded: av.VideoFrame | None = None
        self._ready: av.VideoFrame | None = None

    def at(self, time_s: float, end_s: float) -> av.VideoFrame:
        """The frame that a span which ends at `end_s` shows at `time_s`, of its final size, yuv420p, limited range."""
        try:
            if self._reader is None:
                self._reader = VideoReader(self.uri, options=self._options)
            return self._reader.each([time_s], self._converted, end_s=end_s)[0]
        except VideoError:
            self.close()
            raise

    def close(self) -> None:
        self._decoded = self._ready = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _converted(self, picture: Picture) -> av.VideoFrame:
        if picture.frame is not self._decoded or self._ready is None:
            self._decoded, self._ready = picture.frame, self._convert(picture)
        return self._ready

    def _convert(self, picture: Picture) -> av.VideoFrame:
        """BT.709 stays as it is and everything else becomes BT.601, which is what untagged video is read as:
        turning one matrix into the other takes libswscale a second pass and costs a level of precision.
        """
        frame, turns, mirrored = picture.frame, picture.turns, picture.mirrored
        height, width = output_size(picture.size, self._short_side)
        if turns % 2:
            height, width = width, height
        if frame.colorspace not in COMMON:
            picture.rgb((8, 8))  # Raises VideoError for a matrix that libswscale does not know.
        try:
            scaled = self._reformatter.reformat(
                frame,
                width,
                height,
                format="yuv420p",
                src_colorspace=Colorspace.ITU601 if frame.colorspace == UNSPECIFIED else None,
                dst_colorspace=_form(frame)[1],
                dst_color_range=ColorRange.MPEG,
                interpolation=_SCALE,
                threads=1,
            )
        except ValueError as error:
            raise VideoError(f"video {self.uri}", frame.format.name, "a pixel format that converts") from error
        if turns or mirrored or scaled is frame:  # The reader's own frame must keep its time stamps.
            return _upright(scaled, turns, mirrored)
        return scaled


def _form(frame: av.VideoFrame) -> tuple[Size, Colorspace]:
    """(height, width) of a frame, and the colour space in which it is written."""
    color = Colorspace.ITU709 if frame.colorspace == Colorspace.ITU709 else Colorspace.ITU601
    return (frame.height, frame.width), color


def _upright(frame: av.VideoFrame, turns: int, mirrored: bool) -> av.VideoFrame:
    """A copy of a yuv420p frame, flipped left to right if asked, then turned counter-clockwise by quarters."""
    luma = frame.height * frame.width
    flat = frame.to_ndarray().ravel()
    chroma = flat[luma:].reshape(2, frame.height // 2, frame.width // 2)
    planes = [flat[:luma].reshape(frame.height, frame.width), *chroma]
    turned = [np.rot90(plane[:, ::-1] if mirrored else plane, turns) for plane in planes]
    height, width = turned[0].shape
    packed = np.concatenate([plane.ravel() for plane in turned]).reshape(height * 3 // 2, width)
    copy = av.VideoFrame.from_ndarray(packed, format="yuv420p")
    copy.colorspace, copy.color_range = frame.colorspace, frame.color_range
    return copy


def output_size(size: Size, short_side: int) -> Size:
    """The (height, width) that a picture of `size` is written at: even, its shorter side at most `short_side`."""
    scale = min(1.0, short_side / min(size))
    height, width = (min(2 * round(side * scale / 2), side - side % 2) for side in size)
    return max(2, height), max(2, width)
