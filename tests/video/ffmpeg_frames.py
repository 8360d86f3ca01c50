"""What the ffmpeg program makes of a video: every frame it shows, with its time. The reference for the reader's frames."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

SQUARE = "scale=w='if(gt(sar,1.01),round(iw*sar),iw)':h='if(lt(sar,0.99),round(ih/sar),ih)'"
"""Pixels made square as the reader does: the shorter side grows, and what is off by rounding counts as square."""
EXACT = f"{SQUARE}:flags=bilinear+accurate_rnd+full_chroma_int:in_chroma_loc=left,setsar=1"
"""To RGB without short cuts, colours sited as video standards have it. On its way ffmpeg turns frames upright."""


def run_ffmpeg(*arguments: str | Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run the program with one thread and little to say; the caller looks at the exit code."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostats", "-y", *map(str, arguments)]
    return subprocess.run(command, input=stdin if stdin is not None else b"", capture_output=True, check=False)


@dataclass(frozen=True)
class Reference:
    """Frames in the order shown."""

    times: np.ndarray
    """(n,) seconds."""
    rgb: np.ndarray
    """(n, H, W, 3) uint8, upright, square pixels."""
    stored: np.ndarray
    """(n, h, w) luma or (n, h, w, 3) RGB as stored, see `stored_pixels`."""

    def __len__(self) -> int:
        return len(self.times)


def reference(path: Path, stream: int, like: av.VideoFrame) -> Reference | None:
    """All frames of stream number `stream`, decoded by ffmpeg; None where it shows none. `like` is one of them, for its format."""
    shown = _frames(path, stream, EXACT, "rgb24", np.dtype(np.uint8), channels=3)
    if shown is None:
        return None
    if _has_luma(like):
        stored = _frames(path, stream, "extractplanes=y", None, _depth(like), channels=1, rotate=False)
    else:
        stored = _frames(path, stream, "null", "rgb24", np.dtype(np.uint8), channels=3, rotate=False)
    assert stored is not None and np.array_equal(stored[0], shown[0])
    return Reference(shown[0], shown[1], stored[1])


def stored_pixels(frame: av.VideoFrame) -> np.ndarray:
    """A decoded frame as stored: (h, w) luma, or (h, w, 3) RGB where the format has none. Free of any conversion of colours."""
    if not _has_luma(frame):
        return frame.reformat(format="rgb24", threads=1).to_ndarray()
    plane, depth = frame.planes[0], _depth(frame)
    rows = np.frombuffer(plane, depth).reshape(-1, plane.line_size // depth.itemsize)
    return rows[: frame.height, : frame.width]


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference, in levels."""
    return float(np.abs(a.astype(np.int32) - b.astype(np.int32)).mean())


def _has_luma(frame: av.VideoFrame) -> bool:
    return frame.format.name.startswith(("yuv", "gray"))


def _depth(frame: av.VideoFrame) -> np.dtype:
    return np.dtype(np.uint8 if frame.format.components[0].bits <= 8 else "<u2")


def _frames(
    path: Path,
    stream: int,
    filters: str,
    pixel_format: str | None,
    depth: np.dtype,
    *,
    channels: int,
    rotate: bool = True,
) -> tuple[np.ndarray, np.ndarray] | None:
    """(times (n,), frames (n, h, w[, channels])) after `filters`."""
    result = run_ffmpeg(
        *("-nostdin", "-copyts", "-threads", "1", *(() if rotate else ("-noautorotate",)), "-i", path),
        *("-map", f"0:{stream}", "-vf", f"{filters},showinfo=checksum=0", "-fps_mode", "passthrough"),
        *(("-pix_fmt", pixel_format) if pixel_format else ()),
        *("-f", "rawvideo", "pipe:1"),
    )
    told = result.stderr.decode(errors="replace")
    clock = re.search(r"config in time_base: (\d+)/(\d+)", told)
    rows = re.findall(r"\] n: *\d+ pts: *(-?\d+) .*? s:(\d+)x(\d+) ", told)
    if clock is None or not rows:
        return None
    times = np.array([int(pts) for pts, _, _ in rows]) * float(Fraction(int(clock[1]), int(clock[2])))
    width, height = map(int, rows[0][1:])
    pixels = np.frombuffer(result.stdout, depth).reshape(len(rows), height, width, channels)
    return times, pixels if channels > 1 else pixels[..., 0]
