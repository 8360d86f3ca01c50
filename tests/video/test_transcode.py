"""Training clips out of long videos: the right frame at every time, a keyframe on every boundary, damage stays local."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from jala_ray.types import StorageError, UserError, VideoError
from jala_ray.video import transcode
from jala_ray.video.decode import VideoReader, decode_frames, probe
from jala_ray.video.picture import Picture
from jala_ray.video.transcode import FailedSpan, Transcoded, TranscodeSpan, transcode_spans
from jala_ray.video.write import Encoding, Mp4Writer, write_mp4
from tests.video.numbered import HEIGHT, WIDTH, encode, numbered, numbers_of
from tests.video.spans import GOP, numbers_in, run

MILLI, TICK = Fraction(1, 1000), Fraction(1, 90000)
RNG = np.random.default_rng(3)
IRREGULAR = np.cumsum(RNG.choice([8, 33, 41, 120, 300], 90)).tolist()
"""Milliseconds: frames of 120 and of 3 Hz beside each other."""


def shown(pts: Sequence[int], clock: Fraction, times: Sequence[Fraction], tick: Fraction | None = None) -> list[int]:
    """Which frame a player shows at each time: the last whose time is at most half a tick later, else the first."""
    stamps = [stamp * clock for stamp in pts]
    return [max(0, bisect.bisect_right(stamps, time + (tick or clock) / 2) - 1) for time in times]


def uniform(fps: float | Fraction, clock: Fraction = TICK, start: int = 0) -> list[int]:
    return [start + round(k / Fraction(fps) / clock) for k in range(200)]


SOURCES: dict[str, tuple[str, list[int], Fraction, dict]] = {
    "30 fps": ("a.mp4", uniform(30), TICK, {"g": "30"}),
    "b-frames": ("a.mp4", uniform(30), TICK, {"bf": "3", "g": "250"}),
    "29.97 fps": ("a.mp4", uniform(Fraction(30000, 1001)), TICK, {"bf": "2", "g": "60"}),
    "25 fps": ("a.mp4", uniform(25), TICK, {"bf": "2", "g": "50"}),
    "60 fps": ("a.mp4", uniform(60), TICK, {"bf": "2", "g": "60"}),
    "begins at 1.5 s": ("a.mp4", uniform(30, start=135_000), TICK, {"bf": "2", "g": "40"}),
    "millisecond clock": ("a.mkv", uniform(30, MILLI), MILLI, {"bf": "2", "g": "40"}),
    "variable rate": ("a.mp4", IRREGULAR, MILLI, {"bf": "2", "g": "20"}),
}


@pytest.mark.parametrize("rate", [30, 15, Fraction(15_000, 370)], ids=["wild", "lab", "scale 0.37"])
@pytest.mark.parametrize("name", SOURCES)
def test_every_frame_is_the_one_a_player_shows(tmp_path, name, rate):
    file, pts, clock, options = SOURCES[name]
    source = encode(tmp_path / file, pts, clock, **options)
    first, chunk_s = pts[0] * clock, GOP / Fraction(rate)
    with av.open(str(source)) as container:
        tick = Fraction(container.streams.video[0].time_base or 0)  # A container may count finer than it was told to.
    frame_pts = [pts[k] * clock for k in (7, 20)]  # Spans that begin on a frame, and one that lies between two.
    starts = [first, *frame_pts, first + chunk_s + Fraction(1, 70)]
    spans = [
        TranscodeSpan(float(start), float(start + 2 * chunk_s), tmp_path / f"{i}.mp4")
        for i, start in enumerate(starts)
        if start + 2 * chunk_s <= pts[-1] * clock
    ]
    assert len(spans) == 4
    results = run(source, spans, rate)
    assert sorted(result.span.start_s for result in results) == sorted(span.start_s for span in spans)
    for result in results:
        assert isinstance(result, Transcoded) and result.frames == 2 * GOP + 1
        start = Fraction(result.span.start_s)
        expected = shown(pts, clock, [start + k / Fraction(rate) for k in range(result.frames)], tick)
        end = Fraction(result.span.end_s)
        if expected[-1] + 1 < len(pts) and pts[expected[-1]] * clock >= end - Fraction(1, 1000):
            expected[-1] -= 1  # What begins at the end is no longer the span's.
        assert numbers_in(result.span.path) == expected
        boundaries = np.arange(3) * float(chunk_s)
        at_boundaries = numbers_of(decode_frames(result.span.path, boundaries))
        assert at_boundaries == expected[::GOP]
        with VideoReader(source) as reader:
            times, end_s = result.span.start_s + boundaries, result.span.end_s
            assert at_boundaries == numbers_of(reader.each(times, Picture.rgb, end_s=end_s))


def test_touching_spans_are_read_in_one_pass(make_video, tmp_path, monkeypatch):
    """The last frame of a span lies before the first of the next, though both are asked for at one time."""
    source, readers = make_video(120, gop=250), []

    def opened(*args, **options):
        readers.append(VideoReader(*args, **options))
        return readers[-1]

    monkeypatch.setattr(transcode, "VideoReader", opened)
    cuts = [0.0, 1.0, 2.0, 3.0]
    spans = [TranscodeSpan(a, b, tmp_path / f"{3 - a}.mp4") for a, b in pairwise(cuts)]
    run(source, spans[::-1])
    assert [numbers_in(span.path)[-1] for span in spans] == [29, 59, 89]
    assert len(readers) == 1 and readers[0].decoded <= 95


def test_structure_of_a_file(make_video, tmp_path):
    (result,) = run(make_video(120), [TranscodeSpan(0.5, 2.0, tmp_path / "a.mp4")])
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "faststart"
    with av.open(str(tmp_path / "a.mp4")) as container:
        (stream,) = container.streams.video
        assert len(container.streams) == 1
        packets = [packet for packet in container.demux(stream) if packet.size]
        tick = Fraction(stream.time_base or 0)
        assert not container.metadata.keys() - {"major_brand", "minor_version", "compatible_brands"}
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 15, 30, 45], (
        "three chunks, 4 boundaries"
    )
    assert [(packet.pts or 0) * tick for packet in packets] == [Fraction(k, 30) for k in range(46)]
    assert all(packet.pts == packet.dts and (packet.duration or 0) * tick == Fraction(1, 30) for packet in packets)
    assert [5 in unit_types(bytes(packet)) for packet in packets] == [packet.is_keyframe for packet in packets], "IDR"
    assert isinstance(result, Transcoded) and (result.frames, result.height, result.width) == (46, HEIGHT, WIDTH)
    info = probe(tmp_path / "a.mp4")
    assert (info.start_s, info.fps) == (0.0, 30.0) and info.duration_s == pytest.approx(46 / 30)


def unit_types(packet: bytes) -> set[int]:
    """Types of the H.264 units in a packet of an mp4."""
    types = set()
    while packet:
        size = int.from_bytes(packet[:4], "big")
        types.add(packet[4] & 31)
        packet = packet[4 + size :]
    return types


def test_each_boundary_decodes_by_itself(make_video, tmp_path):
    """From its own keyframe, nothing before it: what a data pipeline does."""
    run(make_video(120), [TranscodeSpan(0.5, 2.0, tmp_path / "a.mp4")])
    for boundary, number in enumerate([15, 30, 45, 59]):
        with VideoReader(tmp_path / "a.mp4") as reader:
            assert numbers_of(reader.read([boundary / 2])) == [number] and reader.decoded == 1


def test_same_source_same_bytes(make_video, tmp_path):
    source = make_video(200, Fraction(30000, 1001), bframes=2)
    spans = [[TranscodeSpan(i, i + 2.0, tmp_path / f"{name}{i}.mp4") for i in range(4)] for name in "ab"]
    run(source, spans[0])
    run(source, spans[1][::-1], short_side=HEIGHT)
    for one, other in zip(*spans, strict=True):
        assert Path(one.path).read_bytes() == Path(other.path).read_bytes(), "whatever the order and the neighbours"
    run(source, [TranscodeSpan(2, 4.0, tmp_path / "alone.mp4")])
    assert (tmp_path / "alone.mp4").read_bytes() == (tmp_path / "a2.mp4").read_bytes()


def test_one_pass_and_no_more(make_video, tmp_path, monkeypatch):
    readers = []

    class Counted(VideoReader):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            readers.append(self)

    monkeypatch.setattr(transcode, "VideoReader", Counted)
    adjacent = [TranscodeSpan(i * 0.5, i * 0.5 + 0.5, tmp_path / f"{i}.mp4") for i in range(15)]
    overlapping = [TranscodeSpan(1.0, 3.0, tmp_path / "c.mp4"), TranscodeSpan(0.25, 6.0, tmp_path / "d.mp4")]
    assert all(isinstance(result, Transcoded) for result in run(make_video(226), adjacent + overlapping))
    assert len(readers) == 1 and readers[0].decoded == 226
    assert numbers_in(adjacent[3].path) == [*range(45, 60), 59] and numbers_in(adjacent[4].path)[0] == 60
    assert numbers_in(overlapping[1].path) == [*range(7, 180)], "0.25 s is between frames 7 and 8"
    readers.clear()
    run(
        make_video(226, gop=30),
        [TranscodeSpan(0.5, 1.0, tmp_path / "e.mp4"), TranscodeSpan(5.0, 5.5, tmp_path / "f.mp4")],
    )
    assert len(readers) == 1 and readers[0].decoded == 30 + 15, "the gap is not decoded, but its way to a keyframe is"


def test_the_end_of_the_source(make_video, tmp_path):
    """31 frames at 30 fps: the last is shown at 1 s and until 1.033 s."""
    ends = {"a": (0.5, 1.0), "b": (31 / 30 - 0.5, 31 / 30), "c": (0.6, 1.1), "d": (3.0, 3.5)}
    results = run(make_video(31), [TranscodeSpan(*span, tmp_path / f"{name}.mp4") for name, span in ends.items()])
    by_name = {Path(result.span.path).stem: result for result in results}
    assert numbers_in(tmp_path / "a.mp4") == list(range(15, 31)), "the boundary at the end is the last frame"
    assert numbers_in(tmp_path / "b.mp4") == [*range(16, 31), 30], "held for one frame"
    for name in ("c", "d"):
        result = by_name[name]
        assert isinstance(result, FailedSpan) and "one frame after the last" in str(result.error)
        assert not (tmp_path / f"{name}.mp4").exists()


def test_before_the_first_frame(tmp_path):
    source = encode(tmp_path / "late.mp4", [1500 + 40 * k for k in range(40)], MILLI)
    run(source, [TranscodeSpan(1.0, 2.0, tmp_path / "a.mp4")])
    assert numbers_in(tmp_path / "a.mp4") == [0] * 15 + shown(
        [40 * k for k in range(40)], MILLI, [Fraction(k, 30) for k in range(16)]
    )


def damaged(source: Path, path: Path, number: int, change: Callable[[bytes], bytes]) -> Path:
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        place, size = packets[number].pos, packets[number].size
    assert place is not None
    data = source.read_bytes()
    path.write_bytes(data[:place] + change(data[place : place + size]) + data[place + size :])
    return path


@pytest.mark.parametrize("number", [90, 95, 119])
def test_damage_fails_the_spans_that_need_it(make_video, tmp_path, number):
    """Groups of 30 frames; a span has 15, the last shown twice. Frame 95 is needed from 95 to 119."""
    path = damaged(make_video(226, gop=30), tmp_path / "damaged.mp4", number, lambda data: b"\xff" * len(data))
    spans = [TranscodeSpan(i * 0.5, i * 0.5 + 0.5, tmp_path / f"{i}.mp4") for i in range(15)]
    results = run(path, spans)
    assert [result.span for result in results] == spans
    lost = [i for i, span in enumerate(spans) if span.end_s * 30 > number and span.start_s * 30 < 120]
    assert [i for i, result in enumerate(results) if isinstance(result, FailedSpan)] == lost
    for i, result in enumerate(results):
        if isinstance(result, FailedSpan):
            assert isinstance(result.error, VideoError) and "damaged" in str(result.error)
        else:
            end = 15 * i + 15
            assert numbers_in(result.span.path) == [*range(15 * i, end), end if end == 225 else end - 1]
    kept = {f"{i}.mp4" for i in range(15)} - {f"{i}.mp4" for i in lost}
    assert {path.name for path in tmp_path.iterdir()} == kept | {"damaged.mp4"}, "no unfinished file is left"


def test_damage_between_spans_is_not_met(make_video, tmp_path):
    path = damaged(make_video(226, gop=30), tmp_path / "damaged.mp4", 95, lambda data: bytes(len(data)))
    results = run(path, [TranscodeSpan(0, 2.5, tmp_path / "a.mp4"), TranscodeSpan(4.0, 6.0, tmp_path / "b.mp4")])
    assert all(isinstance(result, Transcoded) for result in results)


def test_truncated_source_gives_what_it_has(make_video, tmp_path):
    whole = make_video(226, gop=30, bframes=2).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    results = run(tmp_path / "cut.mp4", [TranscodeSpan(i * 1.0, i + 1.0, tmp_path / f"{i}.mp4") for i in range(7)])
    failed = [isinstance(result, FailedSpan) for result in results]
    assert failed == sorted(failed) and 3 <= failed.index(True) <= 5
    for i in range(failed.index(True)):
        assert numbers_in(tmp_path / f"{i}.mp4") == [*range(30 * i, 30 * i + 30), 30 * i + 29]


def test_no_video_fails_every_span(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video" * 100)
    results = run(
        tmp_path / "text.mp4", [TranscodeSpan(0, 1, tmp_path / "a.mp4"), TranscodeSpan(1, 2, tmp_path / "b.mp4")]
    )
    assert len(results) == 2
    for result in results:
        assert isinstance(result, FailedSpan) and "cannot open" in str(result.error)
    (missing,) = run(tmp_path / "none.mp4", [TranscodeSpan(0, 1, tmp_path / "a.mp4")])
    assert isinstance(missing, FailedSpan) and "no such file" in str(missing.error)


def test_files_appear_when_complete(make_video, tmp_path):
    spans = [TranscodeSpan(0, 1, tmp_path / "a.mp4"), TranscodeSpan(0.5, 3, tmp_path / "b.mp4")]
    results = transcode_spans(make_video(120), spans, 30, encoding=Encoding(GOP, 20, "ultrafast"), short_side=64)
    assert next(results).span is spans[0]
    visible = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert visible == ["a.mp4"] and len(list(tmp_path.iterdir())) == 2, "b.mp4 is on its way under another name"
    results.close()  # pyright: ignore
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_what_makes_no_sense_is_refused(make_video, tmp_path):
    source, span = make_video(60), TranscodeSpan(0, 1, tmp_path / "a.mp4")
    cases = [
        ({"short_side": 1}, [span], "short_side"),
        ({"rate": 0}, [span], "fps"),
        ({"preset": "quick"}, [span], "libx264"),
        ({}, [span, span], "a file of its own"),
        ({}, [TranscodeSpan(1, 1, tmp_path / "a.mp4")], "start before end"),
        ({}, [TranscodeSpan(0, float("inf"), tmp_path / "a.mp4")], "finite"),
    ]
    for settings, spans, reason in cases:
        with pytest.raises(UserError, match=reason):
            run(source, spans, **settings)
    with pytest.raises(StorageError, match="can be written"):
        run(source, [span, TranscodeSpan(0, 1, tmp_path / "no" / "folder.mp4")])
    assert list(tmp_path.iterdir()) == []


def test_writer_as_a_context(tmp_path):
    with Mp4Writer(tmp_path / "a.mp4", (HEIGHT, WIDTH), 30, Encoding(gop=8)) as writer:
        for image in numbered(25):
            writer.add_rgb(image)
    write_mp4(tmp_path / "b.mp4", numbered(25), 30, gop=8)
    assert writer.count == 25 and (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with pytest.raises(KeyError), Mp4Writer(tmp_path / "c.mp4", (HEIGHT, WIDTH), 30) as writer:
        writer.add_rgb(next(numbered(1)))
        raise KeyError
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "b.mp4"}


def test_a_real_truncated_file(shared_data, tmp_path):
    source = shared_data / "hard_videos_derived" / "truncated_moov_ok.mp4"  # Claims 150 frames, decodes 63.
    results = run(source, [TranscodeSpan(i * 1.0, i + 1.0, tmp_path / f"{i}.mp4") for i in range(5)])
    assert [isinstance(result, Transcoded) for result in results] == [True, True, False, False, False]
