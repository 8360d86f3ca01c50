"""Write an mp4 of H.264, frame by frame or at once."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace

from jala_ray.types import StorageError, UserError, VideoError
from jala_ray.video.picture import Size


def frame_rate(fps: float | Fraction) -> Fraction:
    """The rate an mp4 can state, frames per second. Raises VideoError unless it is positive."""
    rate = Fraction(fps).limit_denominator(1_000_000)
    if rate <= 0:
        raise VideoError("fps", fps, "a positive number of frames per second")
    return rate


@dataclass(frozen=True)
class Encoding:
    """How libx264 encodes."""

    gop: int = 30
    """Frames from one keyframe to the next."""
    crf: int = 18
    """Constant rate factor: 0 keeps everything, 51 least."""
    preset: str = "veryfast"
    pixel_format: str = "yuv420p"
    bframes: int = 0


class Mp4Writer:
    """An mp4 that grows frame by frame: the first is shown at 0 s, the following at a constant rate.

    A keyframe starts every `gop` frames (closed groups, no scene-cut keyframes), so the cost of fetching a
    frame is bounded and known. The index is at the front of the file (faststart): a reader of a remote file
    needs no seek to its end. One encoder thread, no time stamps, no metadata: the same frames give the same
    bytes. The file appears under its name when `close` has completed it; `discard` leaves nothing. As a
    context manager it closes, or discards when an exception passes.

    Raises VideoError for sizes the pixel format cannot hold (4:2:0 needs even ones), UserError for settings
    that libx264 refuses, StorageError where the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: Size,
        fps: float | Fraction,
        encoding: Encoding | None = None,
        colorspace: Colorspace = Colorspace.ITU601,
    ) -> None:
        self.path, self.size = Path(path), size
        self.encoding, self.colorspace = encoding or Encoding(), colorspace
        self.count = 0
        """Frames written so far."""
        self._tick = 1 / frame_rate(fps)
        _check_size(size, self.encoding.pixel_format)
        self._partial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.part")
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        with self._explained():
            self._container = av.open(f"file:{self._partial}", "w", format="mp4", options=options)
        try:
            self._stream = self._container.add_stream("libx264", rate=1 / self._tick)
            self._configure(self.encoding)
        except BaseException:
            self.discard()
            raise

    def _configure(self, encoding: Encoding) -> None:
        self._stream.height, self._stream.width = self.size
        self._stream.pix_fmt = encoding.pixel_format
        context = self._stream.codec_context
        context.thread_count = 1
        context.colorspace, context.color_range = self.colorspace, ColorRange.MPEG
        context.options = {
            "preset": encoding.preset,
            "crf": str(encoding.crf),
            "bf": str(encoding.bframes),
            "g": str(encoding.gop),
            "keyint_min": str(encoding.gop),
            "sc_threshold": "0",
            "flags": "+cgop+bitexact",
            "a53cc": "0",  # captions that a decoded frame carries along
            "x264-params": "mbtree=0",  # its assembly reads beyond its input: the same frames gave other bytes
        }
        try:
            context.open()
        except FFmpegError as error:
            settings = {name: getattr(encoding, name) for name in ("preset", "crf", "gop", "bframes")}
            raise UserError("encoder settings", settings, "settings that libx264 takes") from error

    def add(self, frame: av.VideoFrame) -> None:
        """Write a frame of the file's size, pixel format and colour space, limited range. Its time stamps are
        overwritten.
        """
        frame.pts, frame.time_base, frame.duration = self.count, self._tick, 1
        frame.pict_type = 0  # A decoded frame brings its own type, which would decide where keyframes are.
        with self._explained():
            self._container.mux(self._stream.encode(frame))
        self.count += 1

    def add_rgb(self, image: np.ndarray) -> None:
        """Write a frame of (H, W, 3) uint8 RGB."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        self.add(
            frame.reformat(
                format=self.encoding.pixel_format,
                dst_colorspace=self.colorspace,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
        )

    def close(self) -> None:
        """Complete the file. Raises VideoError when no frame was written."""
        try:
            if not self.count:
                raise VideoError("frames", 0, "at least one frame")
            with self._explained():
                self._container.mux(self._stream.encode(None))
                self._container.close()
                os.replace(self._partial, self.path)
        finally:
            self.discard()

    def discard(self) -> None:
        """Stop; the unfinished file is removed. Nothing happens to a finished one."""
        try:
            with contextlib.suppress(FFmpegError, OSError):  # A file about to be removed needs no proper end.
                self._container.close()
        finally:
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (FFmpegError, OSError) as error:
            raise StorageError(f"video {self.path}", str(error), "a file that can be written") from error


def write_mp4(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    fps: float | Fraction,
    *,
    gop: int = 30,
    crf: int = 18,
    pixel_format: str = "yuv420p",
    bframes: int = 0,
    preset: str = "veryfast",
) -> int:
    """Encode frames (each (H, W, 3) uint8 RGB, all of one size) to a local mp4; returns the number of frames.

    The file is as `Mp4Writer` makes it. Raises what that raises, and VideoError: no frames, or a frame of
    another shape or type.
    """
    frame_rate(fps)
    encoding = Encoding(gop, crf, preset, pixel_format, bframes)
    with contextlib.ExitStack() as opened:
        writer = None
        for index, image in enumerate(frames):
            if writer is None:
                size = _rgb_size(image)
                writer = opened.enter_context(Mp4Writer(path, size, fps, encoding))
            shape = (*writer.size, 3)
            if image.dtype != np.uint8 or image.shape != shape:
                shown = (image.dtype.name, image.shape)
                raise VideoError(f"frames[{index}]", shown, f"uint8 of shape {shape}, as the first frame")
            writer.add_rgb(image)
        if writer is None:
            raise VideoError("frames", 0, "at least one frame")
    return writer.count


def _rgb_size(image: np.ndarray) -> Size:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise VideoError("frames[0]", (image.dtype.name, image.shape), "uint8 of shape (H, W, 3)")
    height, width, _ = image.shape
    return height, width


def _check_size(size: Size, pixel_format: str) -> None:
    height, width = size
    if pixel_format == "yuv420p" and (height % 2 or width % 2):
        raise VideoError(
            "frame size",
            size,
            "even height and width for yuv420p",
            "Use yuv444p or crop one pixel.",
        )
