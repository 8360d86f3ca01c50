"""mp4 files: the same bytes for the same frames, keyframes where asked, the index in front."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from jala_ray.types import StorageError, VideoError
from jala_ray.video.decode import decode_frames, probe
from jala_ray.video.write import write_mp4
from tests.video.numbered import numbered, numbers_of


@pytest.mark.parametrize("bframes", [0, 2])
def test_same_frames_same_bytes(tmp_path, bframes):
    for name in ("a.mp4", "b.mp4"):
        assert write_mp4(tmp_path / name, numbered(25), 15, gop=8, bframes=bframes) == 25
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_structure(tmp_path):
    path = tmp_path / "a.mp4"
    write_mp4(path, numbered(25), Fraction(30000, 1001), gop=8)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "faststart"
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    assert [i for i, p in enumerate(packets) if p.is_keyframe] == [0, 8, 16, 24]
    assert all(p.pts == p.dts for p in packets), "no reordering without B-frames"
    info = probe(path)
    assert (info.width, info.height, info.codec) == (96, 64, "h264")
    assert info.fps == pytest.approx(30000 / 1001) and info.duration_s == pytest.approx(25 * 1.001 / 30)
    assert numbers_of(decode_frames(path, np.arange(25) * 1.001 / 30)) == list(range(25))


def test_colours_survive(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = colours.repeat(16, 0).repeat(16, 1)
    for pixels, error in (("yuv420p", 4), ("yuv444p", 2)):
        write_mp4(tmp_path / "c.mp4", [image], 30, crf=1, pixel_format=pixels)
        back = decode_frames(tmp_path / "c.mp4", [0.0])[0].astype(int)
        assert np.abs(back - image)[8::16, 8::16].mean() < error


def test_bad_frames_leave_no_file(tmp_path):
    path = tmp_path / "x.mp4"
    good = np.zeros((16, 16, 3), np.uint8)
    cases = [
        ([], "at least one"),
        ([good.astype(np.float32)], "uint8"),
        ([good, good[:8]], r"frames\[1\]"),
        ([good[:15]], "even"),
        ([good[..., 0]], r"\(H, W, 3\)"),
    ]
    for frames, reason in cases:
        with pytest.raises(VideoError, match=reason):
            write_mp4(path, frames, 30)
    with pytest.raises(VideoError, match="fps"):
        write_mp4(path, [good], 0)
    with pytest.raises(StorageError, match="can be written"):
        write_mp4(tmp_path / "no" / "folder.mp4", [good], 30)
    assert list(tmp_path.iterdir()) == []
