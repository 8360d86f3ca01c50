"""The policy of docs/video.md where a comparison with ffmpeg's frames does not tell: colours by formula, streams, sizes, refusals."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from jala_ray.types import VideoError
from jala_ray.video.decode import VideoReader, decode_frames, probe
from jala_ray.video.picture import Picture
from jala_ray.video.write import write_mp4
from tests.video.ffmpeg_frames import run_ffmpeg
from tests.video.hard_files import made
from tests.video.numbered import number_of, numbered, numbers_of

LUMA_WEIGHTS = {1: (0.2126, 0.0722), 2: (0.299, 0.114), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114)} | {
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
"""(Kr, Kb) of the colour matrices of ITU-T H.273; an unspecified one (2) counts as BT.601."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


# Colours.


def by_formula(y: float, cb: float, cr: float, bits: int, full: bool, matrix: int) -> np.ndarray:
    """RGB, 0..255, of a code value (ITU-T H.273, 8.3), without any transfer function."""
    unit = 2.0 ** (bits - 8)
    luma = y / (2**bits - 1) if full else (y / unit - 16) / 219
    blue, red = ((c - 128 * unit) / (2**bits - 1) if full else (c / unit - 128) / 224 for c in (cb, cr))
    kr, kb = LUMA_WEIGHTS[matrix]
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    return 255 * np.clip([r, (luma - kr * r - kb * b) / (1 - kr - kb), b], 0, 1)


@pytest.mark.parametrize("matrix", LUMA_WEIGHTS)
@pytest.mark.parametrize("span", [0, 1, 2], ids=["unspecified", "limited", "full"])
@pytest.mark.parametrize("name", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p12le"])
def test_matrix_and_range_are_those_of_the_frame(name: str, span: int, matrix: int) -> None:
    for values in ((60, 100, 180), (120, 128, 128), (180, 150, 90), (90, 200, 120)):
        frame = av.VideoFrame(32, 16, name)
        bits = frame.format.components[0].bits
        codes = [value << (bits - 8) for value in values]
        for plane, code in zip(frame.planes, codes, strict=True):
            plane.update(np.full(plane.buffer_size // (1 + (bits > 8)), code, "u1" if bits == 8 else "<u2"))
        frame.colorspace, frame.color_range = matrix, span
        expected = by_formula(*codes, bits, span == 2, matrix)
        off = np.abs(Picture(frame, 1.0).rgb().astype(float) - expected).max()
        assert off < (3 if name == "yuv420p" else 1.5), (values, expected)


@pytest.mark.parametrize("transfer", [1, 14, 16, 18], ids=["BT.709", "BT.2020", "PQ", "HLG"])
def test_transfer_functions_are_left_alone(transfer: int) -> None:
    frame = av.VideoFrame(16, 16, "yuv444p10le")
    for plane, code in zip(frame.planes, (700, 480, 540), strict=True):
        plane.update(np.full(plane.buffer_size // 2, code, "<u2"))
    frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = 9, 1, 9, transfer
    assert np.abs(Picture(frame, 1.0).rgb() - by_formula(700, 480, 540, 10, False, 9)).max() < 1.5


def test_a_matrix_without_a_conversion_is_refused() -> None:
    frame = av.VideoFrame(16, 16, "yuv444p")
    frame.colorspace = 8
    with pytest.raises(VideoError, match="colour matrix 8"):
        Picture(frame, 1.0).rgb()


# Orientation.

UPRIGHT = {
    "0": lambda image: image,
    "90": np.rot90,
    "180": lambda image: np.rot90(image, 2),
    "270": lambda image: np.rot90(image, 3),
}


@pytest.mark.parametrize("degrees", UPRIGHT)
@pytest.mark.parametrize("flip", [None, "-display_hflip", "-display_vflip"])
def test_all_eight_orientations(folder: Path, degrees: str, flip: str | None) -> None:
    plain, turned = made(folder, "plain.mp4"), folder / f"{degrees}{flip}.mp4"
    options = ("-display_rotation", degrees, *((flip,) if flip else ()))
    assert run_ffmpeg(*options, "-i", plain, "-c", "copy", turned).returncode == 0
    flat, info = decode_frames(plain, [0.5])[0], probe(turned)
    shown = UPRIGHT[degrees](flat)
    shown = {None: shown, "-display_hflip": shown[:, ::-1], "-display_vflip": shown[::-1]}[flip]
    upright = decode_frames(turned, [0.5])[0]
    np.testing.assert_array_equal(upright, shown)
    assert info.mirrored == (flip is not None) and upright.shape == (info.height, info.width, 3)
    small = VideoReader(turned).each([0.5], lambda picture: picture.rgb((30, 20)))[0]
    assert (
        np.abs(small - np.asarray(Image.fromarray(upright).resize((20, 30), Image.Resampling.BICUBIC), float)).mean()
        < 3
    )


def test_orientation_beside_facts_that_pyav_cannot_name(tmp_path: Path) -> None:
    """A picture's EXIF block, for one."""
    image = Image.fromarray(next(numbered(1)))
    exif = image.getexif()
    exif[274] = 6  # Orientation: turn clockwise.
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert probe(tmp_path / "turned.jpg").rotation == 270
    upright = decode_frames(tmp_path / "turned.jpg", [0.0])[0]
    assert np.abs(upright - np.rot90(np.asarray(image, float), 3)).mean() < 4


def test_frames_are_freed_when_they_are_done_with(folder: Path) -> None:
    """Looking at a frame's orientation must not keep it: a worker would hold hundreds until the collector comes."""
    path = made(folder, "turned_90.mp4")
    gc.collect()
    gc.disable()
    try:
        with VideoReader(path) as reader:
            reader.each(np.arange(50) / 30, Picture.rgb)
        alive = [held for held in gc.get_objects() if isinstance(held, av.VideoFrame) and held.width > 8]
    finally:
        gc.enable()
    assert len(alive) <= 2


# Streams.


def test_the_stream_a_player_shows(folder: Path) -> None:
    assert probe(made(folder, "cover.mp4")).codec == "h264"
    cover = ("-f", "lavfi", "-i", "sine=duration=1", "-f", "lavfi", "-i", "color=red:duration=1:rate=1", "-c:v", "png")
    song = folder / "song.m4a"
    assert run_ffmpeg(*cover, "-map", "0", "-map", "1", "-disposition:v", "attached_pic", song).returncode == 0
    with pytest.raises(VideoError, match="no video stream"):
        probe(song)


# Sizes.


def test_a_size_that_changes_on_the_way(folder: Path) -> None:
    """Pictures of one size each may be had at once; a fixed size may be had throughout."""
    parts = []
    for number, size in enumerate(((64, 96), (128, 160))):
        plain, part = folder / f"{number}.mp4", folder / f"{number}.ts"
        write_mp4(plain, [np.asarray(Image.fromarray(image).resize(size[::-1])) for image in numbered(30)], 30, gop=10)
        shift = ("-output_ts_offset", str(number), "-muxdelay", "0", "-mpegts_flags", "+resend_headers")
        assert run_ffmpeg("-i", plain, "-c", "copy", *shift, part).returncode == 0
        parts.append(part.read_bytes())
    path = folder / "two_sizes.ts"
    path.write_bytes(b"".join(parts))
    start = probe(path).start_s
    with VideoReader(path) as reader:
        assert reader.read([start, start + 0.9]).shape == (2, 64, 96, 3)
        assert reader.read([start + 1.5, start + 1.1]).shape == (2, 128, 160, 3)
        times = start + np.array([0.2, 1.2, 0.6, 1.6])
        pictures = reader.each(times, lambda picture: picture.rgb((64, 96)))
        assert numbers_of(pictures) == [6, 6, 18, 18]
        with pytest.raises(VideoError, match="several sizes"):
            reader.read(times)


# Damage.


def had(path: Path, order: Iterable[int], threads: int = 1) -> dict[int, int | None]:
    """The number read back at the time of each frame, asked for in `order`; None where it was refused."""
    outcomes: dict[int, int | None] = {}
    with VideoReader(path, threads=threads) as reader:
        for number in order:
            try:
                outcomes[int(number)] = number_of(reader.read([number / 30])[0])
            except VideoError:
                outcomes[int(number)] = None
    return outcomes


def packets_of(path: Path) -> list[tuple[int, int, int]]:
    """(position, bytes, frame shown) of every packet of a video of 30 frames a second."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        found = [packet for packet in container.demux(stream) if packet.size]
        return [(p.pos or 0, p.size, round(30 * float(stream.time_base) * p.pts)) for p in found]


ORDERS = {"ascending": np.arange(60), "random": np.random.default_rng(0).permutation(60)}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("order", ORDERS)
def test_what_precedes_damage_and_what_follows_it_is_had(make_video, tmp_path: Path, order: str, threads: int) -> None:
    """From the packet that does not decode to the next keyframe nothing is shown."""
    whole = make_video(60, gop=20, bframes=2)
    data, packets = bytearray(whole.read_bytes()), packets_of(whole)
    place = next(i for i, (_, _, number) in enumerate(packets) if number == 28)
    begin, size, _ = packets[place]
    data[begin : begin + size] = b"\xff" * size
    (tmp_path / "damaged.mp4").write_bytes(data)
    lost = {number for _, _, number in packets[place:] if number < 40}
    expected = {number: None if number in lost else number for number in range(60)}
    assert had(tmp_path / "damaged.mp4", ORDERS[order], threads) == expected


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_made_from_a_corrupt_frame_is_refused(tmp_path: Path, order: str) -> None:
    """A frame that the decoder patched, and knows it, spoils those that build on it, which it does not say."""
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 256, (2, 48, 96, 3), np.uint8)
    frames = [np.concatenate([image[:16], scenes[int(number >= 25)]]) for number, image in enumerate(numbered(60))]
    path = tmp_path / "patched.mp4"
    write_mp4(path, frames, 30, gop=20, crf=30)
    whole, (begin, size, _) = path.read_bytes(), packets_of(path)[25]
    for place in range(begin + size // 5, begin + size, 7):  # Not all damage is noticed.
        path.write_bytes(whole[:place] + b"\x0b\x30\x55\x7a" + whole[place + 4 :])
        with av.open(str(path)) as container:
            if [round(30 * frame.time) for frame in container.decode(video=0) if frame.is_corrupt] == [25]:
                break
    else:
        pytest.fail("no damage that the decoder notices")
    assert had(path, ORDERS[order]) == {number: None if 25 <= number < 40 else number for number in range(60)}


def test_a_header_may_promise_more_than_there_is(folder: Path) -> None:
    with VideoReader(made(folder, "short.mkv")) as reader:
        promised = probe(made(folder, "vfr.mkv")).duration_s
        assert reader.info.duration_s < promised - 0.2, "what is there counts"
        assert len(reader.read([reader.info.duration_s - 0.1])) == 1
        with pytest.raises(VideoError, match=r"truncated|damaged"):
            reader.read([promised - 0.1])
    with VideoReader(made(folder, "short_index_first.mp4")) as reader:
        assert reader.info.duration_s == probe(made(folder, "index_first.mp4")).duration_s, (
            "of the pictures, so believed"
        )
        with pytest.raises(VideoError, match=r"truncated|damaged"):
            reader.read([reader.info.duration_s - 0.1])


# Real footage.


def test_real_egocentric_clip(shared_data: Path) -> None:
    (path,) = (shared_data / "vitra_ego4d").glob("*.mp4")
    info = probe(path)
    assert (info.width, info.height, info.fps) == (480, 368, 30.0)
    with VideoReader(path) as reader:
        first, boundary = reader.read([0.0, 0.5])
        assert (first != boundary).any() and reader.decoded <= 25
