"""Real files with the oddities of cameras and encoders, against decoding every frame in order."""

from __future__ import annotations

import av
import numpy as np
import pytest

from jala_ray.types import VideoError
from jala_ray.video.decode import VideoReader, probe

DERIVED = [
    "av1.mp4",
    "hevc.mp4",
    "longgop_bframes.mp4",
    "nonzero_start.mp4",
    "odd_321x181_yuv444.mp4",
    "vfr.mp4",
    "vp9.webm",
]
OTHERS = [
    "testsrc2_mpeg4.avi",
    "h264_10bits.mp4",
    "test_non_zero_start.mp4",
    "animated.gif",
    "testsrc2_odd_width_444.mp4",
]


def check_against_reading_all(path) -> None:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [
            (frame.pts * float(stream.time_base), frame.to_ndarray(format="rgb24"))
            for frame in container.decode(stream)
        ]
    for place in (len(frames) // 2, len(frames) - 1, len(frames) // 3, 0):  # Forwards and backwards.
        time_s, expected = frames[place]
        with VideoReader(path) as reader:
            np.testing.assert_array_equal(reader.read([time_s])[0], expected, err_msg=f"{path.name} frame {place}")


@pytest.mark.parametrize("name", DERIVED)
def test_derived(shared_data, name):
    check_against_reading_all(shared_data / "hard_videos_derived" / name)


@pytest.mark.parametrize("name", OTHERS)
def test_codec_cases(shared_data, name):
    check_against_reading_all(shared_data / "hard_videos_torchcodec" / name)


def test_rotated(shared_data):
    folder = shared_data / "hard_videos_derived"
    info = probe(folder / "rotated90.mp4")
    assert (info.width, info.height, info.rotation) == (270, 480, 90)
    with (
        VideoReader(folder / "rotated90.mp4") as turned,
        VideoReader(folder / "longgop_bframes.mp4") as plain,
    ):
        upright, stored = turned.read([1.0])[0].astype(int), plain.read([1.0])[0].astype(int)
    assert np.abs(np.rot90(stored) - upright).mean() < 10 < np.abs(np.rot90(stored, 3) - upright).mean()


def test_single_frame(shared_data):
    with VideoReader(shared_data / "hard_videos_derived" / "single_frame.mp4") as reader:
        assert reader.read([0.0, 1 / 30]).shape == (2, 270, 480, 3)
        with pytest.raises(VideoError):
            reader.read([1.0])


def test_broken(shared_data):
    folder = shared_data / "hard_videos_derived"
    for name in ("zero_byte.mp4", "truncated_no_moov.mp4"):
        with pytest.raises(VideoError):
            probe(folder / name)
    with VideoReader(folder / "truncated_moov_ok.mp4") as reader:
        assert reader.info.duration_s == pytest.approx(5.0), "the header's claim"
        assert reader.read([0.0, 1.5]).shape == (2, 270, 480, 3)
        with pytest.raises(VideoError):
            reader.read([4.0])


def test_real_egocentric_clip(shared_data):
    (path,) = (shared_data / "vitra_ego4d").glob("*.mp4")
    info = probe(path)
    assert (info.width, info.height, info.fps) == (480, 368, 30.0)
    with VideoReader(path) as reader:
        first, boundary = reader.read([0.0, 0.5])
        assert (first != boundary).any() and reader.decoded <= 25
