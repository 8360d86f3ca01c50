"""Frames by packet index are `VideoReader`'s frames, and little is read for them."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from jala_ray.data.__main__ import main

from jala_ray.data.manifest.rows import clip_to_row, row_to_clip
from jala_ray.data.manifest.table import Manifest
from jala_ray.types import PacketIndex, VideoError
from jala_ray.video.decode import VideoReader, decode_frames, probe
from jala_ray.video.frames import clip_frames, index_boundaries
from jala_ray.video.packets import PacketScan, decode_packets, fetch_packets, runs
from jala_ray.video.picture import Picture
from tests.video.ffmpeg_frames import run_ffmpeg
from tests.video.numbered import encode, number_of
from tests.video.test_frames import clip_of


def by_index(uri, index: PacketIndex, boundaries) -> list[np.ndarray]:
    return decode_packets(str(uri), index, fetch_packets(str(uri), index, boundaries), boundaries, Picture.rgb)


def index_of(path, times) -> PacketIndex:
    index = PacketScan(path).index(np.asarray(times), math.inf)
    assert index is not None
    return index


@pytest.mark.parametrize("gop,bframes", [(30, 0), (250, 0), (250, 3), (12, 2)])
def test_frames_are_the_readers(make_video, gop, bframes):
    path = make_video(90, gop=gop, bframes=bframes)
    times = [0.0, 0.5, 0.5, 1.7, 2.99]
    index = index_of(path, times)
    for asked in ([0, 1, 2, 3, 4], [3, 0], [4], [2, 2]):
        found = by_index(path, index, asked)
        np.testing.assert_array_equal(np.stack(found), decode_frames(path, [times[i] for i in asked]))
    assert [number_of(image) for image in by_index(path, index, [0, 1, 3, 4])] == [0, 15, 51, 89]


def test_keyframes_at_the_boundaries_are_all_that_is_kept_and_read(make_video):
    path = make_video(90, gop=30)
    index = index_of(path, [0.0, 1.0, 2.0])
    assert len(index.offset) == 3 and index.key.all()
    assert [(run.first, run.last) for run in runs(index, [0, 2])] == [(0, 0), (2, 2)]
    middle = index_of(path, [0.5, 1.5])
    assert len(middle.offset) == 32 and list(np.flatnonzero(middle.key)) == [0, 16]
    assert len(fetch_packets(str(path), middle, [0])) == 16


def test_an_index_goes_through_a_manifest_row(make_video):
    path = make_video(90, gop=30)
    clip = clip_of(path, 0.0, 2.0)
    clip = dataclasses.replace(clip, packets=index_boundaries(PacketScan(path), clip))
    back = row_to_clip(clip_to_row(clip))
    assert back.packets is not None
    for field in dataclasses.fields(PacketIndex):
        np.testing.assert_array_equal(getattr(back.packets, field.name), getattr(clip.packets, field.name), field.name)
    wanted = {"a": ((32, 48), [0, 1, 2]), "b": ((64, 64), [0])}
    plain = clip_frames(dataclasses.replace(clip, packets=None), wanted)
    for name, pictures in clip_frames(back, wanted).items():
        np.testing.assert_array_equal(pictures, plain[name])


def test_rotation_comes_with_the_index(tmp_path):
    path = encode(tmp_path / "r.mp4", list(range(40)), Fraction(1, 30), rotation=90)
    index = index_of(path, [0.0, 1.0])
    assert index.turns % 2 == 1
    np.testing.assert_array_equal(np.stack(by_index(path, index, [0, 1])), decode_frames(path, [0.0, 1.0]))


@pytest.mark.parametrize("folder", ["hard_videos_derived", "hard_videos_torchcodec", "vitra_ego4d"])
def test_real_files_are_read_alike_or_not_indexed(shared_data, folder):
    indexed = 0
    for path in sorted((shared_data / folder).iterdir()):
        if path.suffix not in (".mp4", ".webm", ".mkv", ".avi"):
            continue
        try:
            times = probe(path).start_s + np.array([0.1, 0.4, 0.7])
            index = PacketScan(path).index(times, math.inf)
        except VideoError:
            continue  # test_hard_table says which these are
        if index is not None:
            indexed += 1
            found = by_index(path, index, [1, 2, 0])
            np.testing.assert_array_equal(np.stack(found), decode_frames(path, times[[1, 2, 0]]), path.name)
    assert indexed >= {"hard_videos_derived": 7, "hard_videos_torchcodec": 8, "vitra_ego4d": 1}[folder]


def test_damage_is_a_video_error_and_the_next_clip_decodes(make_video, tmp_path):
    path = make_video(90, gop=30)
    index = index_of(path, [0.0, 1.0, 2.0])
    packets = fetch_packets(str(path), index, [0, 1, 2])
    broken = packets | {1: b"\x00\x00\x00\x05" + bytes(len(packets[1]) - 4)}
    with pytest.raises(VideoError, match=r"numbered|\.mp4"):
        decode_packets(str(path), index, broken, [0, 1, 2], Picture.rgb)
    np.testing.assert_array_equal(
        decode_packets(str(path), index, packets, [2], Picture.rgb)[0], decode_frames(path, [2.0])[0]
    )
    unknown = dataclasses.replace(index, codec="nonesuch")
    with pytest.raises(VideoError, match="nonesuch"):
        decode_packets(str(path), unknown, packets, [0], Picture.rgb)


def test_a_file_that_changed_after_indexing_is_refused(make_video, tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(make_video(60, gop=30).read_bytes())
    index = index_of(path, [0.0, 1.0])
    path.write_bytes(make_video(90, gop=30).read_bytes())
    with pytest.raises(VideoError, match="changed after it was indexed"):
        fetch_packets(str(path), index, [0, 1])
    path.unlink()
    with pytest.raises(VideoError, match="no such file"):
        fetch_packets(str(path), index, [0, 1])


def test_convert_writes_indices_on_demand(make_video, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(make_video(90, gop=15).read_bytes())
    for flag, indexed in (([], False), (["--packets"], True)):
        out = str(tmp_path / f"m{indexed}")
        assert main(["convert", "video-folder", "--folder", str(tmp_path / "videos"), *flag, out]) == 0
        (clip,) = Manifest(out)
        assert (clip.packets is not None) == indexed
        assert clip.packets is None or len(clip.packets.boundary) == clip.n_chunks + 1


@pytest.mark.parametrize("sizes", [((64, 96), (128, 160), (64, 96)), ((64, 96), (96, 64))])
def test_a_size_that_changes_on_the_way_is_read_alike_or_not_indexed(tmp_path, sizes):
    parts = []
    for number, (height, width) in enumerate(sizes):
        path = tmp_path / f"{number}.ts"
        source = f"testsrc2=s={width}x{height}:r=30:d=1.5"
        assert run_ffmpeg("-f", "lavfi", "-i", source, "-c:v", "libx264", "-pix_fmt", "yuv420p", path).returncode == 0
        parts.append(path)
    (tmp_path / "list.txt").write_text("".join(f"file {path}\n" for path in parts))
    video = tmp_path / "joined.mp4"
    assert run_ffmpeg("-f", "concat", "-safe", "0", "-i", tmp_path / "list.txt", "-c", "copy", video).returncode == 0
    times = np.arange(0.1, 1.5 * len(sizes) - 0.1, 0.4)
    index = PacketScan(video).index(times, math.inf)
    if index is None:
        return
    with VideoReader(video) as reader:
        expected = reader.each(times, lambda picture: picture.rgb((48, 48)))
    asked = list(range(len(times)))
    found = decode_packets(str(video), index, fetch_packets(str(video), index, asked), asked, lambda p: p.rgb((48, 48)))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
