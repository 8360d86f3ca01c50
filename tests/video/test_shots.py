"""Cuts between shots, at the presentation time of the first frame after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from jala_ray.types import UserError, VideoError
from jala_ray.video.decode import VideoReader
from jala_ray.video.picture import Picture
from jala_ray.video.shots import ShotDetector, shot_cuts
from jala_ray.video.write import write_mp4

HEIGHT, WIDTH = 96, 144
SCENES = [
    np.asarray(
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 20, 3), dtype=np.uint8)).resize((720, HEIGHT))
    )
    for seed in range(4)
]


def view(scene: int, k: int) -> np.ndarray:
    """Frame k of a shot: a camera that pans 3 px a frame over a picture."""
    return SCENES[scene][:, 3 * k : 3 * k + WIDTH]


def encode(path: Path, pts: Sequence[int], clock: Fraction, shots: Sequence[int], **options: str) -> Path:
    """Shots that begin at frames `shots`, shown at `pts` ticks."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.time_base = stream.time_base = clock
        stream.codec_context.options = {"preset": "ultrafast", "crf": "12", **options}
        for k, stamp in enumerate(pts):
            scene = sum(k >= first for first in shots)
            image = np.ascontiguousarray(view(scene, k - max([0, *(f for f in shots if f <= k)])))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = stamp, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


VARIABLE = np.cumsum(np.random.default_rng(1).choice([9, 33, 34, 100], 90)).tolist()
TIMES: dict[str, tuple[str, list[int], Fraction]] = {
    "30 fps": ("a.mp4", list(range(90)), Fraction(1, 30)),
    "60 fps": ("a.mp4", list(range(90)), Fraction(1, 60)),
    "29.97 fps from 1.5 s": ("a.mp4", [1500 + round(k * 1001 / 30) for k in range(90)], Fraction(1, 1000)),
    "variable": ("a.mkv", VARIABLE, Fraction(1, 1000)),
}


@pytest.mark.parametrize("name", TIMES)
def test_cuts_are_where_the_new_shot_begins(tmp_path, name):
    file, pts, clock = TIMES[name]
    path = encode(tmp_path / file, pts, clock, [30, 47, 52], bf="2", g="250")
    cuts = shot_cuts(path, float(pts[0] * clock), float(pts[-1] * clock))
    assert cuts == pytest.approx([float(pts[k] * clock) for k in (30, 47, 52)], abs=1e-9), "short shots count too"
    with VideoReader(path) as reader:  # The time names that very frame: the one before it is of the old shot.
        for time_s, scene in zip(cuts, (1, 2, 3), strict=True):
            before, after = reader.read([time_s - 0.002, time_s]).astype(int)
            assert np.abs(after - view(scene, 0)).mean() < 6 < 30 < np.abs(after - before).mean()


def test_no_cut_in_a_moving_picture(tmp_path):
    path = encode(tmp_path / "pan.mp4", list(range(100)), Fraction(1, 30), [])
    assert shot_cuts(path, 0, 100 / 30) == []


def test_only_the_stretch_asked_for(tmp_path):
    path = encode(tmp_path / "a.mp4", list(range(90)), Fraction(1, 30), [30, 60], g="10")
    assert shot_cuts(path, 1.5, 3.0) == [2.0]
    assert shot_cuts(path, 0.5, 1.9) == [1.0]
    assert shot_cuts(path, 0.2, 0.9) == []
    for stretch in ((1.0, 1.0), (2.0, 1.0), (0.0, float("nan"))):
        with pytest.raises(UserError, match="start before end"):
            shot_cuts(path, *stretch)


def test_past_the_end_is_no_harm(tmp_path):
    """Headers promise more than files hold."""
    path = encode(tmp_path / "a.mp4", list(range(90)), Fraction(1, 30), [30, 60], g="10")
    assert shot_cuts(path, 0, 8.0) == pytest.approx([1.0, 2.0, 3.0]), "the rest, which is not there, is apart"


def test_damage_is_a_shot_of_its_own(tmp_path):
    """Groups of 20 frames; the packet of frame 70, at 2.33 s, is destroyed: lost up to frame 79, and the second
    ends with frame 89.
    """
    path = encode(tmp_path / "a.mp4", list(range(150)), Fraction(1, 30), [30, 100, 130], g="20", bf="0")
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        place, size = packets[70].pos, packets[70].size
    assert place is not None
    data = bytearray(path.read_bytes())
    data[place : place + size] = b"\xff" * size
    path.write_bytes(data)
    assert shot_cuts(path, 0, 5.0) == pytest.approx([1.0, 70 / 30, 3.0, 100 / 30, 130 / 30])


def test_nothing_to_decode_is_an_error(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video" * 100)
    with pytest.raises(VideoError, match="cannot open"):
        shot_cuts(tmp_path / "text.mp4", 0, 1)
    path = encode(tmp_path / "a.mp4", list(range(30)), Fraction(1, 30), [])
    with pytest.raises(VideoError, match="one frame after the last"):
        shot_cuts(path, 5, 6)


def test_detector_fed_by_another_decoding(tmp_path):
    """Cuts become certain two pictures later."""
    path = encode(tmp_path / "a.mp4", list(range(60)), Fraction(1, 30), [30])
    detector, seen = ShotDetector(), []
    with VideoReader(path) as reader:
        reader.each(np.arange(60) / 30, lambda picture: seen.append(detector.add(len(seen) / 30, picture)))
    assert [(k, cuts) for k, cuts in enumerate(seen) if cuts] == [(32, [1.0])]


def test_pictures_that_change_size():
    detector, cuts = ShotDetector(), []
    for k in range(40):
        image = np.ascontiguousarray(view(0, k) if k < 20 else view(0, k)[:64, :64])
        picture = Picture(av.VideoFrame.from_ndarray(image, format="rgb24"), 1.0)
        cuts += detector.add(k / 30, picture)
    assert cuts == [20 / 30], "half of the view is gone"


def test_real_shots(shared_data, tmp_path):
    """Up to 0.8 s of each of many recordings of hands, often of the same place, joined: a cut between each two, and none besides."""
    files = sorted((shared_data / "beingh0_overlay_clips").glob("*/*.mp4"))
    starts: list[int] = []

    def frames(convert: Callable = lambda picture: picture.rgb((180, 240))):
        for file in files:
            with VideoReader(file) as reader:
                count = min(12, int(reader.info.duration_s * 15))
                starts.append((starts[-1] if starts else 0) + count)
                yield from reader.each(np.arange(count) / 15, convert)

    count = write_mp4(tmp_path / "all.mp4", frames(), 15, gop=250, bframes=2)
    assert shot_cuts(tmp_path / "all.mp4", 0, count / 15) == pytest.approx([start / 15 for start in starts[:-1]])


def test_real_video_without_cuts(shared_data):
    (path,) = (shared_data / "dexretargeting_hand").glob("*.mp4")
    assert shot_cuts(path, 0, 10) == []
    assert shot_cuts(shared_data / "hard_videos_torchcodec" / "nasa_13013.mp4", 0, 13) == [pytest.approx(8.008)]
