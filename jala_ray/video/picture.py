"""From a decoded frame to upright RGB pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Interpolation

from jala_ray.types import VideoError

Size = tuple[int, int]
"""(height, width) in pixels."""

SQUARE_WITHIN = 0.01
"""Pixel aspects this near to 1 are what encoders write when they round a size; such pixels count as square.
"""
_SCALE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclass(frozen=True)
class Picture:
    """One decoded frame, still in the decoder's own pixel format."""

    frame: av.VideoFrame
    pixel_aspect: float
    """Width over height of a stored pixel."""

    @property
    def turns(self) -> int:
        """Counter-clockwise quarter turns that bring the stored frame upright."""
        return round(cast("float", self.frame.rotation) / 90) % 4

    @property
    def size(self) -> Size:
        """(height, width) as shown: upright, pixels square (their shorter side grows, none shrinks)."""
        height, width, aspect = self.frame.height, self.frame.width, self.pixel_aspect
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
        size the picture takes libswscale's direct conversion, many times faster and about a level off.
        """
        height, width = size or self.size
        if self.turns % 2:
            height, width = width, height
        scaled = (height, width) != (self.frame.height, self.frame.width)
        try:
            converted = self.frame.reformat(
                width, height, format="rgb24", interpolation=_SCALE if scaled else None, threads=1
            )
        except (FFmpegError, ValueError) as error:
            shown = f"{self.frame.format.name} to {width} x {height}: {error}"
            raise VideoError("frame", shown, "a picture that converts to RGB") from error
        return np.ascontiguousarray(np.rot90(converted.to_ndarray(), self.turns))
