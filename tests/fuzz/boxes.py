"""Damage to videos that keeps most of their structure: boxes, sample tables, units of the codec, tags."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tests.fuzz.damage import SAME_SIZE, number, put_number

_FOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"moof", b"traf", b"mvex", b"mfra")
_TYPES = (*_FOLDERS, b"stsz", b"stco", b"co64", b"stts", b"ctts", b"stss", b"stsc", b"stsd", b"elst", b"mdat", b"free")
_TABLES = (b"stsz", b"stco", b"stts", b"ctts", b"stss", b"stsc", b"elst", b"trun", b"tfdt", b"tfhd", b"trex", b"sidx")
_HEADERS = (b"mvhd", b"tkhd", b"mdhd", b"hdlr", b"stsd", b"ftyp", b"dref", b"vmhd", b"mfhd", b"tfra")
_INSIDE_STSD = (b"avcC", b"hvcC", b"av1C", b"esds", b"pasp", b"colr", b"btrt", b"avc1", b"hev1", b"hvc1", b"mp4v")
_TAGS = (
    *(b"\x1f\x43\xb6\x75", b"\x2a\xd7\xb1", b"\x1c\x53\xbb\x6b", b"\x16\x54\xae\x6b", b"\x1a\x45\xdf\xa3"),
    *(b"\xa3", b"\xe7", b"\xb3", b"\xb7", b"\xf1", b"\xe0", b"\xb0", b"\xba", b"\x54\xb0", b"\x23\xe3\x83"),
    *(b"RIFF", b"LIST", b"avih", b"strh", b"strf", b"idx1", b"00dc", b"movi", b"JUNK", b"\x47\x40", b"\x00\x00\x01"),
)
"""Matroska elements (cluster, time scale, cues, tracks, header, block, ...), chunks of AVI, packets of MPEG-TS, start codes."""


@dataclass(frozen=True)
class Box:
    """One box of an mp4."""

    kind: bytes
    begin: int
    """Of its size field."""
    end: int
    parents: tuple[int, ...]
    """Where the size fields of the boxes around it are."""

    @property
    def body(self) -> int:
        return self.begin + 8


def boxes(
    data: bytes | bytearray, begin: int = 0, end: int | None = None, parents: tuple[int, ...] = ()
) -> Iterator[Box]:
    """Every box of a sound mp4 in order, outer ones first."""
    end = len(data) if end is None else end
    while begin + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, begin)
        if not 8 <= size <= end - begin:
            return
        yield Box(kind, begin, begin + size, parents)
        if kind in _FOLDERS:
            yield from boxes(data, begin + 8, begin + size, (*parents, begin))
        begin += size


def _one(found: list[Box], rng: np.random.Generator, kinds: tuple[bytes, ...] | None = None) -> Box | None:
    fitting = [box for box in found if kinds is None or box.kind in kinds]
    return fitting[int(rng.integers(len(fitting)))] if fitting else None


def _box_size(data: bytearray, rng: np.random.Generator) -> None:
    box = _one(list(boxes(data)), rng)
    if box is not None:
        data[box.begin : box.begin + 4] = number(rng, 4, box.end - box.begin).to_bytes(4, "big")


def _box_type(data: bytearray, rng: np.random.Generator) -> None:
    box = _one(list(boxes(data)), rng)
    if box is not None:
        known = _TYPES[int(rng.integers(len(_TYPES)))]
        data[box.begin + 4 : box.begin + 8] = known if rng.integers(4) else rng.bytes(4)


def _box_place(data: bytearray, rng: np.random.Generator) -> None:
    """A box lost, doubled, or moved behind another; the sizes around it are right in two cases of three."""
    found = list(boxes(data))
    box, other = _one(found, rng), _one(found, rng)
    if box is None or other is None:
        return
    content = bytes(data[box.begin : box.end])
    kind = rng.integers(3)
    if kind == 0:
        del data[box.begin : box.end]
        grown, parents = -len(content), box.parents
    elif kind == 1:
        data[box.end : box.end] = content
        grown, parents = len(content), box.parents
    else:
        data[other.end : other.end] = content
        grown, parents = len(content), other.parents
    if rng.integers(3):
        for place in parents:
            (size,) = struct.unpack_from(">I", data, place)
            struct.pack_into(">I", data, place, (size + grown) % (1 << 32))


def _table(data: bytearray, rng: np.random.Generator) -> None:
    """Counts and entries of the tables of samples, edits and fragments."""
    found = list(boxes(data))
    for _ in range(int(rng.choice([1, 1, 2, 8]))):
        box = _one(found, rng, _TABLES)
        if box is not None:
            counts_only = rng.integers(3) == 0
            put_number(data, rng, box.body, min(box.end, box.body + 12) if counts_only else box.end, 4, "big")


def _header(data: bytearray, rng: np.random.Generator) -> None:
    """Clocks, durations, sizes, the display matrix, the sample description."""
    found = list(boxes(data))
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        box = _one(found, rng, _HEADERS)
        if box is not None:
            put_number(data, rng, box.body, box.end, int(rng.choice([2, 4])), "big")


def _description(data: bytearray, rng: np.random.Generator) -> None:
    """The codec's configuration record, the pixel aspect, the colours: boxes inside the sample description."""
    places = [(kind, data.find(kind)) for kind in _INSIDE_STSD]
    places = [(kind, place) for kind, place in places if place > 0]
    if not places:
        return _header(data, rng)
    _, place = places[int(rng.integers(len(places)))]
    size = int.from_bytes(data[place - 4 : place], "big")
    end = min(len(data), place + 4 + min(size, 120))
    if rng.integers(2):
        put_number(data, rng, place + 4, end)
    else:
        damage = list(SAME_SIZE.values())
        damage[int(rng.integers(len(damage)))](data, rng, place + 4, max(place + 5, end))


def _units(data: bytearray, rng: np.random.Generator) -> None:
    """Lengths, types and headers of length-prefixed units (H.264, HEVC), or the first bytes of samples of other codecs."""
    mdat = _one(list(boxes(data)), rng, (b"mdat",))
    if mdat is None:
        return put_number(data, rng, 0, len(data))
    places, place = [], mdat.body
    while place + 5 <= mdat.end and len(places) < 1000:
        places.append(place)
        place += 4 + int.from_bytes(data[place : place + 4], "big")
    for _ in range(int(rng.choice([1, 1, 2, 8]))):
        place = places[int(rng.integers(len(places)))]
        length = int.from_bytes(data[place : place + 4], "big")
        if rng.integers(2):
            data[place : place + 4] = number(rng, 4, length).to_bytes(4, "big")
        elif rng.integers(2):
            data[place + 4] = int(rng.integers(256))
        else:  # a slice's own header: its kind, parameter set, frame number
            put_number(data, rng, place + 4, min(mdat.end, place + 20), 1)


def _tag(data: bytearray, rng: np.random.Generator) -> None:
    """Sizes and values behind the tags of other containers."""
    present = [tag for tag in _TAGS if tag in data]
    if not present:
        return put_number(data, rng, 0, len(data))
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        tag = present[int(rng.integers(len(present)))]
        place = data.find(tag, int(rng.integers(len(data))))
        place = data.find(tag) if place < 0 else place
        if place < 0:
            continue
        begin = place + len(tag)
        put_number(data, rng, begin, min(len(data), begin + int(rng.choice([1, 4, 8, 48]))))


IN_MP4: dict[str, Callable[[bytearray, np.random.Generator], None]] = {
    "box size": _box_size,
    "box type": _box_type,
    "box lost, doubled, moved": _box_place,
    "sample tables": _table,
    "headers": _header,
    "codec description": _description,
    "codec units": _units,
}
"""name -> change of an mp4 in place."""
IN_OTHERS = {"tags": _tag}
