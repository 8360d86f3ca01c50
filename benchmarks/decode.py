"""The boundary pair that a sample asks for: prepared clips read by packet index, against the other ways to the same frames.

`python benchmarks/decode.py`: one core, 10 s clips of 456 x 256 and 1920 x 1080, RGB at the clip's own size on every side. The original has
30 frames per second and a keyframe every 250; the prepared clip is what `jobs/prepare.py` makes of it. Sides:

- `full`: every frame of the original (what a loader without random access does);
- `gop250_seek`: the best random access to the original: seek and decode, or by packet index (torchcodec too, where it is installed);
- `seek`: open, seek and decode in the prepared clip;
- `pair`: by packet index from the prepared clip: open, ranged read, decode;
- `floor`: a warm decoder fed with just the two keyframes from memory.

Ratios are of medians, and once more of each side's fastest sample, which a machine that others use too disturbs least.
JSON: {"456x256": {"vs_full": x, "vs_gop250_seek": x, "vs_seek": x, "over_floor": x, "fastest": {the same}}, "1920x1080": {...}}.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from av.codec.context import CodecContext
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.form import report, samples
from jala_ray.types import PacketIndex
from jala_ray.video.decode import VideoReader
from jala_ray.video.packets import PacketScan, decode_packets, fetch_packets
from jala_ray.video.picture import Picture
from jala_ray.video.transcode import Transcoded, TranscodeSpan, transcode_spans
from jala_ray.video.write import Encoding, write_mp4

FPS, SECONDS = 30, 10
PAIR = (4, 5)
"""Boundaries, seconds: 120 frames into the original's first group of pictures."""
SIZES = {"456x256": (256, 456), "1920x1080": (1080, 1920)}


def shots(height: int, width: int) -> Iterator[np.ndarray]:
    """300 pictures (height, width, 3): a textured scene that pans, with a patch of moving noise."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (height // 8 + 1, (width + FPS * SECONDS) // 8 + 1, 3))
    scene = np.kron(cells, np.ones((8, 8, 1), np.uint8)).astype(np.uint8)
    for i in range(FPS * SECONDS):
        shot = np.ascontiguousarray(scene[:height, i : i + width])
        shot[: height // 4, : width // 7] = rng.integers(0, 256, (height // 4, width // 7, 3))
        yield shot


def by_index(path: Path, index: PacketIndex) -> list[np.ndarray]:
    places = range(len(index.boundary)) if len(index.boundary) == 2 else PAIR
    return decode_packets(str(path), index, fetch_packets(str(path), index, places), places, Picture.rgb)


def floor_of(path: Path, index: PacketIndex) -> Callable[[], list[np.ndarray]]:
    packets = fetch_packets(str(path), index, PAIR)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = CodecContext.create(stream.codec_context.codec.name, "r")
        assert isinstance(context, VideoCodecContext)
        context.extradata = stream.codec_context.extradata
    context.thread_count = 1
    context.open()
    data = [packets[int(index.boundary[b])] for b in PAIR]

    def run() -> list[np.ndarray]:
        frames = [frame for part in data for frame in context.decode(Packet(part))]
        frames += context.decode(None)
        context.flush_buffers()
        return [Picture(frame, 1.0).rgb() for frame in frames]

    return run


def torchcodec_of(path: Path) -> Callable[[], object] | None:
    try:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports] (optional)
    except (ImportError, RuntimeError, OSError):
        return None

    def run() -> object:
        decoder = VideoDecoder(str(path), seek_mode="approximate", num_ffmpeg_threads=1, dimension_order="NHWC")
        return decoder.get_frames_played_at(list(map(float, PAIR))).data.numpy()

    return run


def read(path: Path, times: list[float]) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        return reader.each(times, Picture.rgb)


def measure(folder: Path, size: tuple[int, int]) -> dict[str, list[float]]:
    """Seconds of every side; all of them give the same pair, the prepared clip's within its compression."""
    original, prepared = folder / "original.mp4", folder / "prepared.mp4"
    write_mp4(original, shots(*size), FPS, gop=250, bframes=2)
    span = TranscodeSpan(0.0, float(SECONDS), prepared)
    results = list(transcode_spans(original, [span], 15, encoding=Encoding(15, 23), short_side=size[0]))
    assert isinstance(results[0], Transcoded), results
    pair = [float(second) for second in PAIR]
    raw = PacketScan(original).index(np.array(pair), math.inf)
    index = PacketScan(prepared).index(np.arange(SECONDS + 1, dtype=float), float(SECONDS))
    assert raw is not None and index is not None and index.key.all() and len(index.key) == SECONDS + 1
    every = [i / FPS for i in range(FPS * SECONDS)]
    sides: dict[str, Callable[[], object]] = {
        "full": lambda: read(original, every),
        "gop250_seek": lambda: read(original, pair),
        "gop250_index": lambda: by_index(original, raw),
        "seek": lambda: read(prepared, pair),
        "pair": lambda: by_index(prepared, index),
        "floor": floor_of(prepared, index),
    }
    for name, path in (("torchcodec_gop250", original), ("torchcodec_prepared", prepared)):
        if (side := torchcodec_of(path)) is not None:
            sides[name] = side
    assert np.array_equal(sides["pair"](), sides["seek"]()) and np.array_equal(sides["pair"](), sides["floor"]())  # type: ignore[arg-type]
    assert np.array_equal(sides["gop250_index"](), sides["gop250_seek"]())  # type: ignore[arg-type]
    assert np.abs(np.subtract(sides["pair"](), sides["gop250_seek"](), dtype=float)).mean() < 8  # type: ignore[arg-type]
    slow = {name: run for name, run in sides.items() if "gop250" in name}
    fast = {name: run for name, run in sides.items() if name not in ("full", *slow)}
    return samples(fast, 41) | samples(slow, 7) | samples({"full": sides["full"]}, 3)


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """The pair against the others, from the seconds of each side."""
    random_access = min(value for side, value in seconds.items() if "gop250" in side)
    return {
        "vs_full": round(seconds["full"] / seconds["pair"], 2),
        "vs_gop250_seek": round(random_access / seconds["pair"], 2),
        "vs_seek": round(seconds["seek"] / seconds["pair"], 2),
        "over_floor": round(seconds["pair"] / seconds["floor"], 3),
    }


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows, figures = [], {}
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), size)
        middle = {side: statistics.median(values) for side, values in found.items()}
        fastest = {side: min(values) for side, values in found.items()}
        rows += [
            (
                name,
                side,
                *(f"{1e3 * seconds[side]:.2f}" for seconds in (middle, fastest)),
                *(f"{seconds[side] / seconds['pair']:.2f}" for seconds in (middle, fastest)),
            )
            for side in found
        ]
        figures[name] = ratios(middle) | {"fastest": ratios(fastest)}
    header = ("size", "side", "median ms", "fastest ms", "over pair", "fastest over pair")
    report("a boundary pair, on one core", header, rows, figures)


if __name__ == "__main__":
    main()
