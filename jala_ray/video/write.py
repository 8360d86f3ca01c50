"""Write an mp4 of H.264 from RGB frames."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace

from jala_ray.types import VideoError


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

    A keyframe starts every `gop` frames (closed groups, no scene-cut keyframes), so the cost of fetching a
    frame is bounded and known. The index is at the front of the file (faststart): a reader of a remote file
    needs no seek to its end. One encoder thread and no time stamps: the same frames give the same bytes. The
    file appears under its name only when it is complete.

    Raises VideoError: no frames, a frame of another shape or type, or sizes the pixel format cannot hold
    (4:2:0 needs even ones).
    """
    path = Path(path)
    rate = Fraction(fps).limit_denominator(1_000_000)
    if rate <= 0:
        raise VideoError("fps", fps, "a positive number of frames a second")
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    count = 0
    try:
        with av.open(
            str(partial), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}
        ) as container:
            stream = container.add_stream("libx264", rate=rate)
            for count, image in enumerate(frames, start=1):
                if count == 1:
                    _configure(stream, image, pixel_format, gop=gop, crf=crf, bframes=bframes, preset=preset)
                _check(image, (stream.height, stream.width, 3), count - 1)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame = frame.reformat(
                    format=pixel_format,
                    dst_colorspace=Colorspace.ITU601,
                    dst_color_range=ColorRange.MPEG,
                    threads=1,
                )
                frame.pts, frame.time_base = count - 1, 1 / rate
                container.mux(stream.encode(frame))
            if count == 0:
                raise VideoError("frames", 0, "at least one frame")
            container.mux(stream.encode(None))
        os.replace(partial, path)
    except (FFmpegError, OSError) as error:
        raise VideoError(f"video {path}", str(error), "a file that can be written") from error
    finally:
        partial.unlink(missing_ok=True)
    return count


def _check(image: np.ndarray, shape: tuple[int, int, int], index: int) -> None:
    if image.dtype != np.uint8 or image.shape != shape:
        raise VideoError(
            f"frames[{index}]", (image.dtype.name, image.shape), f"uint8 of shape {shape}, as the first frame"
        )


def _configure(stream, image: np.ndarray, pixel_format: str, *, gop: int, crf: int, bframes: int, preset: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise VideoError("frames[0]", (image.dtype.name, image.shape), "uint8 of shape (H, W, 3)")
    height, width = image.shape[:2]
    if pixel_format == "yuv420p" and (height % 2 or width % 2):
        raise VideoError(
            "frames[0]",
            (height, width),
            "even height and width for yuv420p",
            "Use yuv444p or crop one pixel.",
        )
    stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
    context = stream.codec_context
    context.thread_count = 1
    context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG
    context.options = {
        "preset": preset,
        "crf": str(crf),
        "bf": str(bframes),
        "g": str(gop),
        "keyint_min": str(gop),
        "sc_threshold": "0",
        "flags": "+cgop+bitexact",
        "x264-params": "mbtree=0",  # its assembly reads beyond its input: the same frames gave other bytes
    }
