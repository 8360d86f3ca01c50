"""The frame a player shows at a time, exactly, and no more decoding than that takes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from jala_ray.types import VideoError
from jala_ray.video.decode import VideoReader, decode_frames, probe
from jala_ray.video.packets import PacketScan
from tests.video.numbered import encode, number_of, numbers_of, trim_by_edit_list

MILLI = Fraction(1, 1000)


def numbers_at(path: Path, times) -> list[int]:
    return numbers_of(decode_frames(path, times))


@pytest.mark.parametrize("bframes", [0, 2])
@pytest.mark.parametrize("gop", [10, 250])
@pytest.mark.parametrize("fps", [30, Fraction(30000, 1001)])
def test_every_frame_is_found_by_its_time(make_video, gop, bframes, fps):
    path = make_video(90, fps, gop=gop, bframes=bframes)
    order = np.random.default_rng(0).permutation(90)
    assert numbers_at(path, order / float(fps)) == order.tolist()
    between = (order + 0.9) / float(fps)
    assert numbers_at(path, between) == order.tolist(), "a frame is shown until the next one"
    with VideoReader(path) as reader:
        one_by_one = [number_of(reader.read([t])[0]) for t in order / float(fps)]
    assert one_by_one == order.tolist(), "one reader asked again and again, forwards and backwards"


def test_times_a_hair_off_a_tick_mean_the_tick(make_video):
    path = make_video(90)
    assert numbers_at(path, [np.nextafter(1.0, 0), 1.0, np.nextafter(1.0, 2), 0.1 * 3]) == [30, 30, 30, 9]


def test_before_the_first_and_after_the_last(make_video):
    path = make_video(31)  # The last frame, 30, is at 1.0 s.
    assert numbers_at(path, [-5.0, -0.01, 1.0, 1.0 + 1 / 30]) == [0, 0, 30, 30]
    with pytest.raises(VideoError, match=r"1.08.*at most 1.033"):
        decode_frames(path, [1.08])


@pytest.mark.parametrize(
    ("times", "frames"),
    [
        ([0.0], 1),
        ([25 / 30], 6),  # 20 .. 25: from the governing keyframe, not from the start.
        ([80 / 30], 1),  # A keyframe.
        ([89 / 30], 10),
        ([21 / 30, 25 / 30], 6),  # The second goes on from the first.
        ([25 / 30, 21 / 30], 6),  # So it does in any order.
        ([21 / 30, 61 / 30], 4),  # A later keyframe: what lies between is not decoded.
        ([0.5, 0.5, 0.5], 6),
        ([25.5 / 30], 6),  # Between two frames, the second is not needed.
    ],
)
def test_no_more_is_decoded_than_needed(make_video, times, frames):
    with VideoReader(make_video(90)) as reader:
        reader.read(times)
        assert reader.decoded == frames


def test_b_frames_cost_their_reordering_only(make_video):
    with VideoReader(make_video(90, bframes=2)) as reader:
        reader.read([80 / 30])
        assert reader.decoded <= 4


def test_a_picture_shown_twice_is_converted_once(make_video):
    converted = []
    with VideoReader(make_video(90)) as reader:
        result = reader.each([0.5, 0.0, 0.501, 0.5], lambda p: converted.append(p) or number_of(p.rgb()))
    assert result == [15, 0, 15, 15] and len(converted) == 2


def test_variable_frame_rate(tmp_path):
    stamps = [0, 40, 50, 300, 310, 320, 900, 910, 1500, 1600, 1610, 1900]
    for name, bframes in (("plain.mp4", "0"), ("b.mp4", "2"), ("b.mkv", "2")):
        path = encode(tmp_path / name, stamps, MILLI, bf=bframes, g="5")
        times = [0.0, 0.039, 0.045, 0.299, 0.3, 0.899, 0.905, 1.4, 1.55, 1.605, 1.7, 1.9]
        assert numbers_at(path, times) == [0, 0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11], name
        assert numbers_at(path, times[::-1]) == [11, 10, 9, 8, 7, 6, 5, 3, 2, 1, 0, 0], name


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.ts", "x.avi"])
def test_containers_that_know_less(tmp_path, name):
    """Millisecond clocks, no index, no presentation times: still the right frames."""
    path = encode(tmp_path / name, list(range(90)), Fraction(1, 30), g="10", bf="0")
    start = probe(path).start_s
    order = np.random.default_rng(0).permutation(90)
    assert numbers_at(path, start + order / 30) == order.tolist()
    with VideoReader(path) as reader:
        assert [number_of(reader.read([start + k / 30])[0]) for k in order] == order.tolist()


def test_open_groups_of_pictures(tmp_path):
    """Frames shown just before a keyframe but stored after it need the group before."""
    path = encode(
        tmp_path / "open.mp4",
        list(range(90)),
        Fraction(1, 30),
        **{"x264-params": "open-gop=1:keyint=10:bframes=3:b-adapt=0"},
    )
    for k in np.random.default_rng(1).permutation(90):
        assert numbers_at(path, [k / 30]) == [k]


def test_start_offset_is_kept(tmp_path):
    path = encode(tmp_path / "late.mp4", [1500 + 40 * k for k in range(25)], MILLI, bf="2")
    info = probe(path)
    assert info.start_s == pytest.approx(1.5) and info.duration_s == pytest.approx(1.0, abs=0.05)
    assert numbers_at(path, [0.0, 1.5, 1.54, 2.46]) == [0, 0, 1, 24]


@pytest.mark.parametrize("bframes", [0, 2])
def test_edit_list_hides_the_beginning(make_video, tmp_path, bframes):
    """The cut lies inside a group of pictures: hidden frames are decoded but never shown."""
    path = trim_by_edit_list(make_video(90, bframes=bframes), tmp_path / f"cut{bframes}.mp4", 14 * 512)
    start = probe(path).start_s
    assert numbers_at(path, [start - 1, start, start + 1 / 30, start + 1.0]) == [14, 14, 15, 44]


def test_rotation_brings_pictures_upright(tmp_path):
    flat = decode_frames(encode(tmp_path / "0.mp4", [0, 1], Fraction(1, 30)), [0.0])[0]
    for degrees in (90, 180, 270):
        path = encode(tmp_path / f"{degrees}.mp4", [0, 1], Fraction(1, 30), rotation=degrees)
        info = probe(path)
        upright = decode_frames(path, [0.0])[0]
        assert info.rotation == degrees and upright.shape == (info.height, info.width, 3)
        np.testing.assert_array_equal(upright, np.rot90(flat, degrees // 90))


def test_pixels_that_are_not_square(tmp_path):
    wide = probe(encode(tmp_path / "wide.mp4", [0, 1], Fraction(1, 30), aspect=Fraction(3, 2)))
    assert (wide.width, wide.height) == (144, 64)
    tall = encode(tmp_path / "tall.mp4", [0, 1], Fraction(1, 30), aspect=Fraction(1, 2))
    assert decode_frames(tall, [0.0]).shape == (1, 128, 96, 3)
    rounded = probe(encode(tmp_path / "rounded.mp4", [0, 1], Fraction(1, 30), aspect=Fraction(2896, 2889)))
    assert (rounded.width, rounded.height) == (96, 64)
    thread = encode(tmp_path / "thread.mp4", [0, 1], Fraction(1, 30), aspect=Fraction(1, 128))
    assert decode_frames(thread, [0.0]).shape == (1, 64, 96, 3)


def test_bad_files_say_what_is_wrong(make_video, tmp_path):
    empty, text, cut = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "cut.mp4"
    empty.write_bytes(b"")
    text.write_text("not a video" * 100)
    cut.write_bytes(make_video(90).read_bytes()[:200])
    cases = [
        (tmp_path / "none.mp4", "no such file"),
        (empty, "empty"),
        (text, "cannot open"),
        (cut, "no video"),
    ]
    for path, reason in cases:
        with pytest.raises(VideoError, match=reason) as caught:
            probe(path)
        assert str(path) in str(caught.value)
    with pytest.raises(VideoError, match="finite"):
        decode_frames(make_video(90), [float("nan")])
    assert decode_frames(make_video(90), []).shape == (0, 64, 96, 3)


def test_no_video_stream(tmp_path):
    import wave

    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with pytest.raises(VideoError, match="no video stream"):
        probe(tmp_path / "sound.wav")


@pytest.mark.parametrize("tag", ["comment", "handler_name"])
@pytest.mark.parametrize("name", ["tagged.mp4", "tagged.mkv"])
def test_tags_in_any_encoding(make_video, tmp_path, name, tag):
    """Of the file and of the stream. PyAV 18 raises UnicodeDecodeError unless told otherwise; 19 has nothing to be told."""
    path = tmp_path / name
    with av.open(str(make_video(30))) as read, av.open(str(path), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        (write if tag == "comment" else stream).metadata[tag] = "Zurich, June"
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                write.mux(packet)
    written = path.read_bytes()
    assert b"Zurich, June" in written
    path.write_bytes(written.replace(b"Zurich, June", "Zürich, Juni".encode("latin-1")))
    assert numbers_at(path, [0.0, 0.5]) == [0, 15]
    assert PacketScan(path).file_size == path.stat().st_size


def test_truncated_file_gives_what_it_has(make_video, tmp_path):
    whole = make_video(90).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    with VideoReader(cut) as reader:
        assert numbers_of(reader.read([0.0, 1.0])) == [0, 30]
        with pytest.raises(VideoError, match=r"truncated|damaged"):
            reader.read([89 / 30])
        assert numbers_of(reader.read([0.5])) == [15], "a failed ask does not spoil the next"


def test_damaged_packets_are_errors_not_pictures(make_video, tmp_path):
    path = tmp_path / "damaged.mp4"
    data = bytearray(make_video(90, gop=250).read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    with pytest.raises(VideoError, match="damaged"):
        decode_frames(path, [89 / 30])


def test_random_damage_gives_pictures_or_a_video_error(make_video, tmp_path):
    """Whatever libav makes of broken headers and packets, nothing but VideoError comes out."""
    rng, outcomes = np.random.default_rng(0), {"pictures": 0, "error": 0}
    whole = make_video(90, bframes=2).read_bytes()
    header = whole.index(b"mdat")
    for attempt in range(60):
        data = bytearray(whole)
        for place in rng.integers(header if attempt % 2 else len(whole), size=20):
            data[place] = rng.integers(256)
        (tmp_path / "damaged.mp4").write_bytes(data)
        try:
            outcomes["pictures"] += len(decode_frames(tmp_path / "damaged.mp4", [0.1, 0.9, 0.2])) == 3
        except VideoError:
            outcomes["error"] += 1
    assert sum(outcomes.values()) == 60 and min(outcomes.values()) > 0
