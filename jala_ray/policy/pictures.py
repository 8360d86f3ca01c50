"""A client's picture as training would have seen it, had a film held it."""

from __future__ import annotations

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter

from jala_ray.types import UserError
from jala_ray.video.picture import Picture

_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def as_filmed(picture: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB of any size -> (3, side, side) uint8, squashed by the function that squashes training's frames.

    First it becomes 8-bit 4:2:0, the pixel format of LeRobot's films: the way from there to RGB loses colour between pixels and, at the
    film's own size, is about a level off, and the model has learned from such pictures. Raises `UserError` for anything else.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise UserError("picture", (str(picture.dtype), picture.shape), "uint8 (H, W, 3) RGB")
    height, width = picture.shape[:2]
    try:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
        stored = VideoReformatter().reformat(frame, width, height, "yuv420p", interpolation=_EXACT, threads=1)
    except (FFmpegError, ValueError) as error:
        raise UserError("picture", f"{width} x {height}: {error}", "one that converts") from error
    return np.ascontiguousarray(Picture(stored, 1.0, indexed_turns=0).rgb((side, side)).transpose(2, 0, 1))
