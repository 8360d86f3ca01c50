"""Pictures of transcoded files: size, orientation, colours, and real videos as a whole."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from jala_ray.video.decode import decode_frames, probe
from jala_ray.video.transcode import FailedSpan, Transcoded, TranscodeSpan, output_size
from tests.video.numbered import HEIGHT, WIDTH, encode
from tests.video.spans import pictures, run


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((1080, 1920), 256, (256, 456)),
        ((1920, 1080), 256, (456, 256)),
        ((1440, 1920), 256, (256, 342)),
        ((720, 1280), 720, (720, 1280)),
        ((181, 321), 256, (180, 320)),
        ((183, 323), 1000, (182, 322)),
        ((368, 480), 257, (256, 336)),
        ((300, 2), 256, (300, 2)),
        ((1, 1), 256, (2, 2)),
    ],
)
def test_output_sizes(size, short_side, expected):
    assert output_size(size, short_side) == expected


def test_pictures_are_upright_square_and_small(tmp_path):
    for degrees in (90, 180, 270):
        source = encode(tmp_path / f"{degrees}.mp4", list(range(40)), Fraction(1, 30), rotation=degrees)
        (result,) = run(source, [TranscodeSpan(0, 1, tmp_path / "out.mp4")], short_side=32, crf=1)
        assert isinstance(result, Transcoded)
        assert (result.height, result.width) == ((32, 48) if degrees == 180 else (48, 32))
        assert probe(tmp_path / "out.mp4").rotation == 0
        size = (result.height, result.width)
        wrong = pictures(tmp_path / "out.mp4", [0.0, 0.5], size) - pictures(source, [0.0, 0.5], size)
        assert np.abs(wrong).mean() < 6
    flipped = tmp_path / "flipped.mp4"  # As front cameras write: left to right, then turned.
    with av.open(str(tmp_path / "90.mp4")) as read, av.open(str(flipped), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        stream.set_display_rotation(90, hflip=True)
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = stream
                write.mux(packet)
    assert probe(flipped).mirrored
    run(flipped, [TranscodeSpan(0, 1, tmp_path / "out.mp4")], crf=1)
    upright = pictures(flipped, [0.5], (WIDTH, HEIGHT))
    assert np.abs(pictures(tmp_path / "out.mp4", [0.5], (WIDTH, HEIGHT)) - upright).mean() < 6
    assert np.abs(pictures(tmp_path / "90.mp4", [0.5], (WIDTH, HEIGHT)) - upright).mean() > 30
    for aspect, expected in ((Fraction(3, 2), (64, 144)), (Fraction(1, 2), (128, 96))):
        source = encode(tmp_path / "aspect.mp4", list(range(40)), Fraction(1, 30), aspect=aspect)
        (result,) = run(source, [TranscodeSpan(0, 1, tmp_path / "out.mp4")], short_side=128)
        assert isinstance(result, Transcoded) and (result.height, result.width) == expected
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert (container.streams.video[0].sample_aspect_ratio or 1) == 1


COLOURS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuvj420p", "yuv420p10le"])
@pytest.mark.parametrize(("space", "full"), [(1, False), (1, True), (5, False), (5, True), (2, False), (9, False)])
def test_colours_stay(tmp_path, pixels, space, full):
    """BT.709, BT.601, untagged and BT.2020, limited and full range, from several pixel formats."""
    source = tmp_path / "colours.mp4"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = *COLOURS.shape[:2], pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = space, 2 if full else 1
        stream.codec_context.options = {"crf": "1", "preset": "ultrafast"}
        matrix = {2: 5}.get(space, space)
        for k in range(20):
            frame = av.VideoFrame.from_ndarray(COLOURS, format="rgb24")
            frame = frame.reformat(format=pixels, dst_colorspace=matrix, dst_color_range=2 if full else 1)
            frame.pts, frame.time_base = k, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (result,) = run(source, [TranscodeSpan(0, 0.5, tmp_path / "out.mp4")], short_side=256, crf=1)
    assert isinstance(result, Transcoded)
    blocks = decode_frames(tmp_path / "out.mp4", [0.25])[0].astype(int)[16::32, 16::32]
    assert np.abs(blocks - COLOURS[16::32, 16::32]).max() < 8, "far below a wrong matrix or range"
    with av.open(str(tmp_path / "out.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (1 if space == 1 else 5, 1)


def test_frames_that_change_size_fail_their_span(tmp_path):
    """A recording whose second half is of another shape, as of a turned phone."""
    parts = []
    for place, size in enumerate([(64, 96), (96, 64)]):
        path = tmp_path / f"{place}.ts"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=30)
            (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"
            stream.codec_context.options = {"preset": "ultrafast", "bf": "0", "g": "10"}
            for k in range(60):
                frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 100, np.uint8), format="rgb24")
                frame = frame.reformat(format="yuv420p")
                frame.pts, frame.time_base = 60 * place + k, Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts.append(path.read_bytes())
    source = tmp_path / "both.ts"
    source.write_bytes(b"".join(parts))
    start = probe(source).start_s
    spans = [
        TranscodeSpan(start + a, start + b, tmp_path / f"{a}.mp4") for a, b in ((0.2, 1.2), (1.5, 2.5), (2.7, 3.7))
    ]
    first, middle, last = run(source, spans)
    assert isinstance(first, Transcoded) and (first.height, first.width) == (64, 96)
    assert isinstance(middle, FailedSpan) and "one size" in str(middle.error)
    assert isinstance(last, Transcoded) and (last.height, last.width) == (96, 64)


REAL = [
    "dexretargeting_hand/human_hand_video.mp4",
    "hard_videos_derived/longgop_bframes.mp4",
    "hard_videos_derived/vfr.mp4",
    "hard_videos_derived/nonzero_start.mp4",
    "hard_videos_derived/rotated90.mp4",
    "hard_videos_derived/hevc.mp4",
    "hard_videos_derived/av1.mp4",
    "hard_videos_derived/vp9.webm",
    "hard_videos_torchcodec/nasa_13013.mp4",
    "hard_videos_torchcodec/nasa_13013_hdr.mp4",
    "g1_inspire_v21",
]


@pytest.mark.parametrize("name", REAL)
def test_real_videos(shared_data, tmp_path, name):
    source = shared_data / name
    source = source if source.is_file() else sorted(source.rglob("*.mp4"))[0]
    start_s = probe(source).start_s + 0.4
    spans = [TranscodeSpan(start_s + i, start_s + i + 1, tmp_path / f"{i}.mp4") for i in range(2)]
    for result in run(source, spans, short_side=128, crf=8):
        assert isinstance(result, Transcoded) and min(result.height, result.width) == 128 and result.frames == 31
        times = np.arange(31) / 30
        size = (result.height, result.width)
        wanted = pictures(source, result.span.start_s + times, size)
        errors = np.abs(pictures(result.span.path, times, size) - wanted).mean((1, 2, 3))
        assert errors.max() < 4, errors
