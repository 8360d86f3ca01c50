"""Videos whose every frame says its own number, so that a test can read back which frame it was given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

HEIGHT, WIDTH, BITS = 64, 96, 8
BLOCK = WIDTH // BITS


def numbered(count: int, first: int = 0) -> Iterator[np.ndarray]:
    """Frames with their number as black and white bits along the top, the rest a gradient that tells
    directions apart.
    """
    for number in range(first, first + count):
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        image[..., 0] = np.linspace(0, 200, WIDTH)[None]
        image[..., 1] = np.linspace(0, 200, HEIGHT)[:, None]
        for bit in range(BITS):
            image[:16, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
        yield image


def number_of(image: np.ndarray) -> int:
    """The number in an upright (H, W, 3) picture of any size that keeps the layout."""
    height, width = image.shape[:2]
    bits = [
        image[height // 8, round((bit + 0.5) * width / BITS)].mean() > 127  # Middle of the bit's block.
        for bit in range(BITS)
    ]
    return sum(int(on) << bit for bit, on in enumerate(bits))


def numbers_of(images: Iterable[np.ndarray]) -> list[int]:
    return [number_of(image) for image in images]


def encode(
    path: Path,
    pts: list[int],
    clock: Fraction,
    *,
    rotation: int = 0,
    aspect: Fraction | None = None,
    codec: str = "libx264",
    **options: str,
) -> Path:
    """Numbered frames shown at any times (ticks of `clock` seconds), in the container the name asks for."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = stream.time_base = clock
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"preset": "ultrafast", **options}
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for stamp, image in zip(pts, numbered(len(pts)), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = stamp, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def trim_by_edit_list(source: Path, target: Path, ticks: int) -> Path:
    """A copy whose edit list hides the first `ticks` of the stream's clock, as a cut without re-encoding."""
    options = {"use_editlist": "1", "avoid_negative_ts": "disabled"}
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as write:
        stream = read.streams.video[0]
        copy = write.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - ticks, packet.dts - ticks, copy
                write.mux(packet)
    return target


def with_sound(
    path: Path,
    images: int | Iterable[np.ndarray],
    fps: int,
    sound_s: float,
    codecs: tuple[str, str] = ("libx264", "aac"),
    **options: str,
) -> Path:
    """So many numbered frames, or others, and a tone of its own length, in the container the name and the muxer's options ask for."""
    with av.open(str(path), "w", options=options) as container:
        video = cast("VideoStream", container.add_stream(codecs[0], rate=fps))
        audio = cast("AudioStream", container.add_stream(codecs[1], rate=48000))
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.thread_count, video.codec_context.gop_size = 1, fps
        if codecs[0] == "libx264":
            video.codec_context.options = {"preset": "ultrafast"}
        for image in numbered(images) if isinstance(images, int) else images:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        tone = (8000 * np.sin(np.arange(round(48000 * sound_s)) / 10)).astype(np.int16)[None]
        sound = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
        sound.rate = 48000
        layout = av.AudioResampler(audio.format.name, "mono", 48000, audio.frame_size or 1024)
        for part in layout.resample(sound):
            container.mux(audio.encode(part))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path
