"""From a decoded frame to upright RGB pixels."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import cast

import av
import numpy as np
from av.error import FFmpegError
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.reformatter import Interpolation, VideoReformatter

from jala_ray.types import VideoError

Size = tuple[int, int]
"""(height, width) in pixels."""

SQUARE_WITHIN = 0.01
"""Pixel aspects this near to 1 are what encoders write when they round a size; such pixels count as square."""
MAX_ASPECT = 16.0
"""Pixel aspects beyond this or its inverse are damage, not intent, and count as square too: no film is meant to be a thread."""
QUARTER_WITHIN = 0.02
"""Rotations this near to a quarter turn (radians) are one; players allow a degree."""
MAX_PIXELS = 2**26
"""Of a picture, twice those of 8K. A damaged header must not ask for gigabytes."""
KEPT_CONVERTERS = 8
"""Converters a thread keeps: of a few kinds of video, to a few sizes."""
_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_SCALE = Interpolation.BICUBIC | _EXACT
_DIRECT = ("yuv420p", "yuvj420p")
"""Pixel formats for which libswscale has a conversion many times faster than the exact one."""
_MATRICES = (0, 1, 2, 3, 4, 5, 6, 7, 9)
"""Colour matrices (ITU-T H.273) that libswscale knows: not YCgCo, constant luminance, ICtCp."""
_STRAIGHT = {(True, True): (0, False), (False, False): (2, False), (False, True): (0, True), (True, False): (2, True)}
_CROSSED = {(False, True): (1, False), (True, False): (3, False), (True, True): (1, True), (False, False): (3, True)}
"""(turns, mirrored) of the display matrix x' = a x + c y, y' = b x + d y by (a, d) >= 0, and by (b, c) >= 0."""


@dataclass(frozen=True)
class Picture:
    """One decoded frame, still in the decoder's own pixel format."""

    frame: av.VideoFrame
    pixel_aspect: float
    """Width over height of a stored pixel."""
    indexed_turns: int | None = None
    """`turns` as a packet index has it; None: the frame itself says."""

    @property
    def turns(self) -> int:
        """Counter-clockwise quarter turns that bring the stored frame, mirrored first if it is, upright."""
        return self._orientation[0]

    @property
    def mirrored(self) -> bool:
        """Whether the stored frame is to be flipped left to right before it is turned."""
        return self._orientation[1]

    @functools.cached_property
    def _orientation(self) -> tuple[int, bool]:
        """(turns, mirrored) by the display matrix. Raises VideoError for rotations by anything but quarter turns."""
        if self.indexed_turns is not None:
            return self.indexed_turns, False
        # A frame and its list of side data hold each other until the garbage collector comes: look at a small copy.
        small = self._converted(8, 8, Interpolation.POINT)
        try:
            matrix = cast("SideDataContainer", small.side_data).get(Type.DISPLAYMATRIX)  # a dict in PyAV 18's stubs
        except ValueError:  # Among them is one that PyAV has no name for, so it lists none. It still knows the angle.
            return round(cast("float", small.rotation) / 90) % 4, False
        if matrix is None:
            return 0, False
        a, b, _, c, d = np.frombuffer(memoryview(matrix), np.int32)[:5].astype(np.float64)
        straight, crossed = np.hypot(a, d), np.hypot(b, c)
        if min(straight, crossed) > QUARTER_WITHIN * max(straight, crossed):
            degrees = np.degrees(np.arctan2(-b, a))
            raise VideoError("display matrix", f"a rotation by {degrees:.1f} degrees", "quarter turns")
        return _STRAIGHT[a >= 0, d >= 0] if straight >= crossed else _CROSSED[b >= 0, c >= 0]

    @property
    def size(self) -> Size:
        """(height, width) as shown: upright, pixels square (their shorter side grows, none shrinks)."""
        height, width, aspect = self.frame.height, self.frame.width, self.pixel_aspect
        if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
            aspect = 1.0
        if aspect > 1 + SQUARE_WITHIN:
            width = round(width * aspect)
        elif aspect < 1 - SQUARE_WITHIN:
            height = round(height / aspect)
        return (width, height) if self.turns % 2 else (height, width)

    def rgb(self, size: Size | None = None) -> np.ndarray:
        """The picture upright, as (H, W, 3) uint8 RGB, squashed to `size` if there is one.

        Colours and scale change in one pass of libswscale. Bicubic with exact rounding, as the encoders' own
        preprocessing; the kernel widens with the reduction, so a smaller picture is antialiased. A box filter
        would be quicker but blocky where a picture grows, and decoding costs far more than either. At its own
        size 8-bit 4:2:0 takes libswscale's direct conversion, many times faster and about a level off; other
        formats take the exact one.

        The matrix and the range that the frame states are honoured, BT.601 and limited range where it states
        none. The transfer function is not: HDR (PQ, HLG) keeps its code values, reduced to 8 bits, without tone
        mapping, and wide-gamut primaries stay as they are. Raises VideoError for what does not convert.
        """
        height, width = size or self.size
        if self.turns % 2:
            height, width = width, height
        if (height, width) != (self.frame.height, self.frame.width):
            quality = _SCALE
        else:
            quality = None if self.frame.format.name in _DIRECT else Interpolation.BILINEAR | _EXACT
        pixels = self._converted(width, height, quality).to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if self.mirrored else pixels, self.turns))

    def _converted(self, width: int, height: int, quality: Interpolation | None) -> av.VideoFrame:
        if self.frame.colorspace not in _MATRICES:
            raise VideoError("frame", f"colour matrix {self.frame.colorspace} (ITU-T H.273)", f"one of {_MATRICES}")
        if not 0 < width * height <= MAX_PIXELS:
            raise VideoError("frame", f"{width} x {height} pixels", f"at most {MAX_PIXELS} pixels")
        stored = (self.frame.width, self.frame.height, self.frame.format.name)
        try:
            return _converter(stored, width, height, quality).reformat(
                self.frame, width, height, "rgb24", interpolation=quality, threads=1
            )
        except (FFmpegError, ValueError) as error:
            shown = f"{self.frame.format.name} to {width} x {height}: {error}"
            raise VideoError("frame", shown, "a picture that converts to RGB") from error


_local = threading.local()


def _converter(*conversion: object) -> VideoReformatter:
    """This thread's converter for frames like this one: making its filters takes as long as using them."""
    kept: OrderedDict[object, VideoReformatter] = _local.__dict__.setdefault("converters", OrderedDict())
    if conversion not in kept:
        kept[conversion] = VideoReformatter()
        if len(kept) > KEPT_CONVERTERS:
            kept.popitem(last=False)
    kept.move_to_end(conversion)
    return kept[conversion]
