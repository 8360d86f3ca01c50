"""What the fuzzing found, each as a case of its own."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest

from jala_ray.data.manifest.places import RowAddress
from jala_ray.data.manifest.rows import row_to_clip
from jala_ray.data.manifest.table import Manifest, rowfile, validate
from jala_ray.data.sampling.catalogue import catalogue
from jala_ray.types import ManifestError, PacketIndex, StorageError, VideoError
from jala_ray.video.decode import MAX_DURATION_S, decode_frames, probe
from jala_ray.video.packets import PacketScan, decode_packets, fetch_packets
from jala_ray.video.picture import MAX_PIXELS, Picture
from jala_ray.video.shots import shot_cuts
from tests.fuzz.bases import MANIFEST, ROWS, Stored, parquet_bytes
from tests.fuzz.boxes import boxes
from tests.fuzz.manifests import LENGTH
from tests.support import small
from tests.video.numbered import numbers_of
from tests.video.test_shots import encode as shots

TIMES = np.array([0.1, 0.6, 1.1])


def message_of(payload: bytes) -> bytes:
    return pa.Codec("zstd").decompress(payload[4:], int.from_bytes(payload[:4], "little") & LENGTH, asbytes=True)


def packed(message: bytes) -> bytes:
    return struct.pack("<I", 3 << 28 | len(message)) + pa.Codec("zstd").compress(message, asbytes=True)


@pytest.fixture
def stored(bases: Path) -> Stored:
    return Stored.of({name: (bases / "manifest" / name).read_bytes() for name in (MANIFEST, ROWS)})


def written(stored: Stored, folder: Path) -> Manifest:
    for name, data in stored.files().items():
        (folder / name).write_bytes(data)
    return Manifest(folder / MANIFEST)


# --- manifests -------------------------------------------------------------------------------------------------------


def test_a_row_whose_lists_point_outside_is_refused_before_it_is_used(stored: Stored, tmp_path: Path) -> None:
    """Arrow trusts the offsets of lists: used unchecked, such a row ended the process (SIGABRT)."""
    message = bytearray(message_of(stored.payloads[0]))
    instructions = struct.pack("<2i", 0, 1)  # offsets of the one instruction's list
    place = message.index(instructions, 8 + int.from_bytes(message[4:8], "little"))
    message[place : place + 8] = struct.pack("<2i", 1_899_942_321, 1_899_942_322)
    stored.payloads[0] = packed(bytes(message))
    manifest = written(stored, tmp_path)
    with pytest.raises(ManifestError, match="an Arrow record batch"):
        manifest.row(0)
    assert manifest.clip(1).clip_id == "untracked"
    assert [(problem.row, problem.field) for problem in validate(manifest.path, videos="none")] == [(0, "row")]


@pytest.mark.parametrize("length", [0xFFFFFFFF, rowfile.MAX_ROW_BYTES + 1, 0, 3])
def test_a_wild_length_asks_for_no_memory(length: int, stored: Stored) -> None:
    with pytest.raises(ManifestError):
        rowfile.unpack(struct.pack("<I", length) + stored.payloads[0][4:])


@pytest.mark.parametrize("payload", [b"", b"\1\0", packed(b""), packed(b"x" * 100)])
def test_what_is_no_row_is_refused(payload: bytes) -> None:
    with pytest.raises(ManifestError, match="row"):
        rowfile.unpack(payload)


def test_a_row_too_large_to_be_read_is_not_written(stored: Stored) -> None:
    long = rowfile.unpack(stored.payloads[0]).to_pylist()[0] | {"description": "x" * rowfile.MAX_ROW_BYTES}
    with pytest.raises(ManifestError, match="Cut shorter clips"):
        list(rowfile.pack(pa.Table.from_pylist([long], rowfile.SCHEMA)))


WILD_PLACES: dict[str, tuple[str, Any]] = {
    "null offset": ("row_offset", None),
    "null size": ("row_size", None),
    "beyond the file": ("row_offset", 1 << 50),
    "before the file": ("row_offset", -8),
    "size of two gigabytes": ("row_size", (1 << 31) - 1),
    "negative size": ("row_size", -5),
    "null check sum": ("row_crc", None),
}


@pytest.mark.parametrize("name", WILD_PLACES)
def test_a_wild_place_loses_its_row_alone(name: str, stored: Stored, tmp_path: Path) -> None:
    column, value = WILD_PLACES[name]
    files = stored.files()
    table = Stored.of(files).index
    values = table[column].to_pylist()
    values[1] = value
    place = table.schema.get_field_index(column)
    table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    for file, data in (files | {MANIFEST: parquet_bytes(table)}).items():
        (tmp_path / file).write_bytes(data)
    manifest = Manifest(tmp_path / MANIFEST)
    with pytest.raises((ManifestError, StorageError)):
        manifest.clip(1)
    assert [manifest.clip(row).clip_id for row in (0, 2, 3)] == ["both", "wild", "unseen"]
    assert [problem.row for problem in validate(manifest.path, videos="none")] == [1]
    assert len(catalogue(manifest, small().data, "train")) == 3


def test_rows_lost_with_the_end_of_their_file_are_problems_of_their_own(stored: Stored, tmp_path: Path) -> None:
    manifest = written(stored, tmp_path)
    rows = (tmp_path / ROWS).read_bytes()
    (tmp_path / ROWS).write_bytes(rows[: manifest.address(3).offset + 10])
    assert [(p.row, p.field.partition(" in ")[0]) for p in validate(manifest.path, videos="none")] == [
        (3, "place of a row"),
        (4, "place of a row"),
    ]


def test_a_null_in_the_index_stops_no_plan(stored: Stored, tmp_path: Path) -> None:
    data = small(data__wild_fraction=0.99).data
    for column in ("split", "domain", "source", "task_type", "clip_id", "left_labelled"):
        table = stored.index
        place = table.schema.get_field_index(column)
        nulls = pa.array([None, *table[column].to_pylist()[1:]], table.schema.field(place).type)
        changed = dataclasses.replace(stored, index=table.set_column(place, table.schema.field(place), nulls))
        assert 2 <= len(catalogue(written(changed, tmp_path), data, "train")) <= 3, column


STREAMS: dict[str, Callable[[dict[str, Any]], str]] = {
    "nested beyond measure": lambda _: "[" * 100_000,
    "no object": lambda _: "[1]",
    "turns as text": lambda facts: json.dumps(facts | {"turns": "0"}),
    "no turns": lambda facts: json.dumps(facts | {"turns": None}),
    "width as text": lambda facts: json.dumps(facts | {"width": "96"}),
    "width beyond 32 bits": lambda facts: json.dumps(facts | {"width": 1 << 40}),
    "a clock of 1/0": lambda facts: json.dumps(facts | {"time_base": [1, 0]}),
    "a clock of three numbers": lambda facts: json.dumps(facts | {"time_base": [1, 2, 3]}),
    "colours of -1": lambda facts: json.dumps(facts | {"color": [-1, 0]}),
    "infinite pixels": lambda facts: json.dumps(facts | {"pixel_aspect": float("inf")}),
    "pixels of no width": lambda facts: json.dumps(facts | {"pixel_aspect": float("nan")}),
    "a codec of 3": lambda facts: json.dumps(facts | {"codec": 3}),
    "a smaller file than its packets": lambda facts: json.dumps(facts | {"file_size": 100}),
}


@pytest.mark.parametrize("name", STREAMS)
def test_what_an_index_says_of_its_stream_is_checked(name: str, stored: Stored) -> None:
    row = stored.row(0)
    assert row_to_clip(row).packets is not None
    with pytest.raises(ManifestError, match="packet_"):
        row_to_clip(row | {"packet_stream": STREAMS[name](json.loads(row["packet_stream"]))})


@pytest.mark.parametrize("name", ["packet_offset", "packet_size", "packet_pts", "packet_key", "packet_boundary"])
def test_nulls_and_numbers_too_large_in_an_index_are_refused(name: str, stored: Stored) -> None:
    row = stored.row(0)
    for values in (None, [None, *row[name][1:]], [1 << 63, *row[name][1:]], [0.5, *row[name][1:]]):
        with pytest.raises(ManifestError, match="packet_"):
            row_to_clip(row | {name: values})


# --- videos ----------------------------------------------------------------------------------------------------------


def indexed(path: Path) -> PacketIndex:
    index = PacketScan(path).index(TIMES, math.inf)
    assert index is not None
    return index


def by_index(path: Path, index: PacketIndex) -> list[np.ndarray]:
    return decode_packets(str(path), index, fetch_packets(str(path), index, [0, 1, 2]), [0, 1, 2], Picture.rgb)


@pytest.mark.parametrize("time_s", [1e15, 1e300, -1e300, 9e18])
def test_times_beyond_all_counting(time_s: float, bases: Path) -> None:
    path = bases / "videos" / "h264.mp4"
    if time_s > 0:
        with pytest.raises(VideoError, match="one frame after the last"):
            decode_frames(path, [time_s])
    else:
        np.testing.assert_array_equal(decode_frames(path, [time_s]), decode_frames(path, [0.0]))


def with_pixel_aspect(data: bytes, across: int, down: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(">2I", changed, data.index(b"pasp") + 4, across, down)
    return bytes(changed)


@pytest.mark.parametrize("aspect", [(1, 0x7FFFFFFF), (0x7FFFFFFF, 1), (1 << 20, 1), (1, 128)])
def test_pixels_of_a_wild_shape(aspect: tuple[int, int], bases: Path, tmp_path: Path) -> None:
    """A picture of 2^31 rows did not fit the converter's numbers, one of 2^26 would have filled the memory, one of 2^13 took seconds."""
    data = (bases / "videos" / "h264_turned.mp4").read_bytes()
    path = tmp_path / "v.mp4"
    path.write_bytes(with_pixel_aspect(data, 4, 3))
    assert decode_frames(path, [0.0]).shape == (1, 128, 64, 3)
    path.write_bytes(with_pixel_aspect(data, *aspect))
    assert decode_frames(path, [0.0]).shape == (1, 96, 64, 3), "they count as square"


def test_a_picture_of_too_many_pixels(bases: Path) -> None:
    (frame,) = decode_frames(bases / "videos" / "h264.mp4", [0.0])
    side = int(MAX_PIXELS**0.5)
    picture = Picture(av.VideoFrame.from_ndarray(frame, "rgb24"), 1.0)
    with pytest.raises(VideoError, match=f"at most {MAX_PIXELS} pixels"):
        picture.rgb((side, side + 1))


def test_an_unknown_codec(bases: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes((bases / "videos" / "h264.mp4").read_bytes().replace(b"avc1", b"zzzz"))
    for use in (PacketScan, lambda path: decode_frames(path, [0.0])):
        with pytest.raises(VideoError):
            use(path)


def test_a_damaged_clip_leaves_nothing_in_the_next_ones_pictures(bases: Path, tmp_path: Path) -> None:
    """Pictures are made with decoders, and a flush does not empty those of all they have seen."""
    sound, path = bases / "videos" / "h264.mp4", tmp_path / "v.mp4"
    index, data = indexed(sound), sound.read_bytes()
    expected = by_index(sound, index)
    mdat = next(box for box in boxes(data) if box.kind == b"mdat")
    rng = np.random.default_rng(0)
    decoded = 0
    for _ in range(200):
        changed = bytearray(data)
        changed[int(rng.integers(mdat.body, mdat.end))] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            by_index(path, index)
            decoded += 1
        except VideoError:
            pass
        for found, right in zip(by_index(sound, index), expected, strict=True):
            np.testing.assert_array_equal(found, right)
    assert 100 <= decoded < 200


def test_two_frames_at_one_time_are_told_apart_or_refused(bases: Path) -> None:
    path = bases / "videos" / "h264.mp4"
    index = PacketScan(path).index(np.array([0.1, 0.3, 0.4]), math.inf)
    assert index is not None
    pts = index.pts.copy()
    pts[index.boundary[1]] = pts[index.boundary[0]]
    with pytest.raises(VideoError):
        by_index(path, dataclasses.replace(index, pts=pts))


@pytest.mark.parametrize("codec", ["libx264", "aac", "srt", "nonesuch", ""])
def test_a_codec_that_decodes_no_video(codec: str, bases: Path) -> None:
    path = bases / "videos" / "h264.mp4"
    with pytest.raises(VideoError):
        by_index(path, dataclasses.replace(indexed(path), codec=codec))


def test_a_clock_of_four_seconds_a_tick(bases: Path, tmp_path: Path) -> None:
    """Seeking goes back by a second at first: here that is no whole tick, and would be no step at all."""
    data = (bases / "videos" / "h264.mkv").read_bytes()
    begin = data.index(b"\x2a\xd7\xb1\x83")
    assert data[begin + 7 : begin + 9] == b"\x4d\x80", "the name of the muxer follows the clock"
    end = begin + 10 + data[begin + 9] - 0x80
    clock = b"\x2a\xd7\xb1\x88" + (4 * 10**9).to_bytes(8, "big")
    left = end - begin - len(clock) - 2
    path = tmp_path / "v.mkv"
    path.write_bytes(data[:begin] + clock + b"\xec" + bytes([0x80 + left]) + bytes(left) + data[end:])
    for times, numbers in (([3000.0, 100.0], [22, 0]), ([0.0, 6000.0, 1000.0], [0, 45, 7])):
        assert numbers_of(decode_frames(path, times)) == numbers
    with pytest.raises(VideoError, match="one frame after the last"):
        decode_frames(path, [1e5])


@pytest.mark.parametrize("ticks", [1 << 40, 1 << 31])
def test_a_header_that_promises_ages(ticks: int, bases: Path, tmp_path: Path) -> None:
    """Going through such a video second by second, for its shots, did not end."""
    sound, path = bases / "videos" / "h264_fragmented.mp4", tmp_path / "v.mp4"
    data = bytearray(sound.read_bytes())
    last = [box for box in boxes(data) if box.kind == b"tfdt"][-1]
    assert data[last.body] == 1, "its time takes 64 bits"
    struct.pack_into(">Q", data, last.body + 4, ticks)
    path.write_bytes(data)
    seconds = ticks / 15360
    if seconds > MAX_DURATION_S:
        with pytest.raises(VideoError, match=r"a duration of \d+ s"):
            probe(path)
    else:
        assert probe(path).duration_s > seconds
    np.testing.assert_array_equal(decode_frames(path, [0.2]), decode_frames(sound, [0.2]))
    begun = time.process_time()
    shot_cuts(path, 0.0, min(seconds, MAX_DURATION_S))
    assert time.process_time() - begun < 10


def test_a_frame_shown_for_hours_hides_no_cut(tmp_path: Path) -> None:
    pts = [*range(30), *range(7200 * 30, 7200 * 30 + 30)]
    path = shots(tmp_path / "v.mp4", pts, Fraction(1, 30), [30])
    begun = time.process_time()
    assert shot_cuts(path, 0.0, 7201.0) == pytest.approx([7200.0])
    assert time.process_time() - begun < 10


def test_a_zero_in_an_address(stored: Stored) -> None:
    with pytest.raises(ManifestError, match="video_uri"):
        row_to_clip(stored.row(0) | {"video_uri": "v\0.mp4"})


def test_an_address_is_checked_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.rows").write_bytes(bytes(100))
    for offset, size in ((-1, 10), (0, 0), (0, -1), (0, 1 << 31)):
        with pytest.raises(ManifestError, match="place of a row"):
            rowfile.fetch(RowAddress(str(tmp_path / "m.rows"), offset, size, 0))
