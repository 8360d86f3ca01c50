"""How long a video's pictures last, whatever else its file holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from jala_ray.video.decode import VideoReader, probe
from jala_ray.video.finder import FrameFinder
from tests.video.numbered import with_sound

CODECS = {
    "webm": ("libvpx", "libopus"),
    "avi": ("mpeg4", "mp2"),
    "ogv": ("libvpx", "libopus"),
    "wmv": ("msmpeg4", "mp2"),
    "3gp": ("mpeg4", "aac"),
    "mpg": ("mpeg2video", "mp2"),
    "mpeg": ("mpeg1video", "mp2"),
}


def made(folder: Path, suffix: str, sound_s: float, **options: str) -> Path:
    return with_sound(folder / f"a.{suffix}", 50, 25, sound_s, CODECS.get(suffix, ("libx264", "aac")), **options)


@pytest.mark.parametrize("sound_s", [2.6, 1.2], ids=["longer sound", "shorter sound"])
@pytest.mark.parametrize(
    "suffix", ["mp4", "mov", "mkv", "webm", "flv", "ts", "mts", "avi", "wmv", "ogv", "3gp", "mpg", "mpeg"]
)
def test_the_duration_is_the_pictures_and_not_the_sounds(tmp_path, suffix, sound_s):
    """Also what is read from there on: half a frame before its end there is a picture, two frames later none."""
    path = made(tmp_path, suffix, sound_s)
    info = probe(path)
    assert info.duration_s == pytest.approx(2.0, abs=0.05)
    with VideoReader(path) as reader:
        assert len(reader.read([info.start_s + info.duration_s - 0.5 / info.fps])) == 1
        times = reader.frame_times()
        assert len(times) == 51 and times[-1] - times[0] == pytest.approx(2.0, abs=0.05)


def test_of_fragments(tmp_path):
    path = made(tmp_path, "mp4", 2.6, movflags="frag_keyframe+empty_moov+default_base_moof")
    assert probe(path).duration_s == pytest.approx(2.0, abs=0.05)


def test_only_the_last_group_of_pictures_is_read_for_it(tmp_path, monkeypatch):
    """A long remote file must not be read whole to learn how long it is."""
    path, packets, read = with_sound(tmp_path / "a.mkv", 250, 25, 11.0), [], FrameFinder._read_packet

    def counted(finder: FrameFinder) -> bool:
        packets.append(None)
        return read(finder)

    monkeypatch.setattr(FrameFinder, "_read_packet", counted)
    assert probe(path).duration_s == pytest.approx(10.0, abs=0.05)
    assert 25 <= len(packets) < 60
