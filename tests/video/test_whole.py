"""Any frame by the index of a whole file is the frame that a player shows, and little is read for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jala_ray.types import VideoError
from jala_ray.video import whole
from jala_ray.video.decode import VideoReader
from jala_ray.video.picture import Picture
from jala_ray.video.whole import FilmIndex, index_film
from tests.video.numbered import number_of, with_sound


def decoded(index: FilmIndex, times: list[float]) -> list[np.ndarray | VideoError]:
    places = [index.nearest(time, 0.0, 1e6).place for time in times]
    found = index.decode(index.fetch(places), places, Picture.rgb)
    return [found[place] for place in places]


@pytest.mark.parametrize(("gop", "bframes"), [(1, 0), (2, 0), (30, 0), (250, 3), (12, 2)])
def test_every_frame_is_the_reader_s(make_video, gop: int, bframes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(90, gop=gop, bframes=bframes)
    index = index_film(path)
    assert index.exact and len(index.order) == 90 and index.period_s == pytest.approx(1 / 30)
    times = [frame / 30 for frame in np.random.default_rng(0).permutation(90)]
    with VideoReader(path) as reader:
        expected = reader.each(times, Picture.rgb)
    monkeypatch.setattr(whole, "VideoReader", None)
    for one, other in zip(decoded(index, times), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_header_tells_all_where_frames_are_in_order(make_video, monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[int]()
    packets_of = whole.packets_of

    def counted(*given):
        for packet in packets_of(*given):
            read.append(packet.size)
            yield packet

    monkeypatch.setattr(whole, "packets_of", counted)
    told = index_film(make_video(200, gop=10))
    assert len(told.order) == 200 and len(read) == whole.TRIED
    read.clear()
    other = index_film(make_video(200, gop=10, bframes=2))
    assert len(other.order) == 200 and len(read) >= 200, "they are read"


def test_no_more_is_fetched_than_the_group_up_to_the_frame(make_video) -> None:
    index = index_film(make_video(90, gop=30))
    assert {len(index.fetch([place]) or ()) for place in (0, 30, 60)} == {1}
    assert len(index.fetch([45]) or ()) == 16 and len(index.fetch([45, 40, 45]) or ()) == 16


def test_the_nearest_frame_within_the_span(make_video) -> None:
    index = index_film(make_video(90))
    assert index.nearest(1.0, 0.0, 3.0).place == 30
    assert index.nearest(1.016, 0.0, 3.0).place == 30 and index.nearest(1.018, 0.0, 3.0).place == 31
    assert index.nearest(2.0, 1.0, 2.0) == (59, pytest.approx(-1 / 30)), (
        "the last of the span, not the next one's first"
    )
    assert index.nearest(0.99, 1.0, 2.0).place == 30
    for time, first, end in ((2.1, 1.0, 2.0), (3.2, 0.0, 9.0), (0.9, 1.0, 2.0), (5.0, 5.0, 6.0)):
        with pytest.raises(VideoError, match="near"):
            index.nearest(time, first, end)


def test_sound_and_other_containers(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv", "a.ts", "a.mov"):
        path = with_sound(tmp_path / name, 60, 30, 2.0)
        index = index_film(path)
        first = float(index.shown_s[0])
        numbers = [number_of(image) for image in decoded(index, [first + frame / 30 for frame in (59, 0, 31)])]
        assert numbers == [59, 0, 31], name


@pytest.mark.parametrize("content", [b"", b"no video", None])
def test_what_is_no_video_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.mp4"):
        index_film(path)


def test_a_file_that_changed_is_told(make_video, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(make_video(90).read_bytes())
    index = index_film(path)
    path.write_bytes(make_video(60).read_bytes())
    with pytest.raises(VideoError, match="changed"):
        index.fetch([0])


def test_real_and_hard_files_show_the_reader_s_frames(shared_data: Path) -> None:
    folders = [
        shared_data / "hard_videos_derived",
        shared_data / "groot_robot_sim.PickNPlace",
        shared_data / "g1_inspire_v21",
    ]
    tried = 0
    for path in sorted(path for folder in folders for path in folder.rglob("*.*") if path.suffix in (".mp4", ".webm")):
        try:
            index = index_film(path)
        except VideoError:
            with pytest.raises(VideoError), VideoReader(path) as reader:
                reader.each([0.0], Picture.rgb)
            continue
        times = [float(index.shown_s[i]) for i in np.linspace(0, len(index.shown_s) - 1, 7).astype(int)]
        for time, one in zip(times, decoded(index, times), strict=True):
            try:
                with VideoReader(path) as reader:
                    (expected,) = reader.each([time], Picture.rgb)
            except VideoError:
                assert isinstance(one, VideoError), (path, time)
                continue
            np.testing.assert_array_equal(one, expected, err_msg=f"{path} {time}")
            tried += 1
    assert tried > 50
