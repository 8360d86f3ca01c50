"""Transcoding a test video, and reading back what was written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from jala_ray.video.decode import VideoReader
from jala_ray.video.transcode import FailedSpan, Transcoded, TranscodeSpan, transcode_spans
from jala_ray.video.write import Encoding
from tests.video.numbered import HEIGHT, numbers_of

GOP = 15


def run(
    source: Path, spans: Sequence[TranscodeSpan], rate: float | Fraction = 30, **settings
) -> list[Transcoded | FailedSpan]:
    """`settings` are `short_side`, `options`, and those of `Encoding`."""
    encoded = {"gop": GOP, "crf": 12, "preset": "ultrafast"}
    encoded |= {name: settings.pop(name) for name in ("gop", "crf", "preset") if name in settings}
    settings = {"short_side": HEIGHT} | settings
    return list(transcode_spans(source, spans, rate, encoding=Encoding(**encoded), **settings))


def numbers_in(path: str | os.PathLike[str]) -> list[int]:
    """Every frame of a file in order, not looked up by time."""
    with av.open(str(path)) as container:
        return numbers_of(frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))


def pictures(path: str | os.PathLike[str], times_s: Sequence[float] | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(M, h, w, 3) int, as the encoders are given them."""
    with VideoReader(path) as reader:
        return np.stack(reader.each(times_s, lambda picture: picture.rgb(size).astype(int)))
