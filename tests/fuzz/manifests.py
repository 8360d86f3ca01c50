"""Damage to manifests: to the bytes of either file, behind a right check sum, and wild values in columns."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jala_ray.data.manifest.rows import INDEX_SCHEMA, SCHEMA
from tests.fuzz.bases import MANIFEST, ROWS, Stored, parquet_bytes
from tests.fuzz.damage import DAMAGE, SAME_SIZE, damaged, number

Files = dict[str, bytes]
_FLOATS = (float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 1e38, 1e15, -1.0, 0.0, 1e-300, 1e9, 3.3, 0.5)
_WORDS = (
    "",
    " ",
    "\0",
    "seen",
    "labelled",
    "absent",
    "continuation",
    "description",
    "train",
    "val",
    "wild",
    "x" * 70_000,
)
_ADDRESSES = (
    "s3://",
    "s3:///x",
    "http://127.0.0.1:9/x.mp4",
    "file://",
    "/",
    "..",
    "~",
    "v.mp4/",
    "concat:v.mp4",
    "\U0001f590",
)
_TEXTS = (*_WORDS, *_ADDRESSES)
_JSONS = ("{}", "[]", "null", "[" * 100_000, '{"codec": "h264"}', "{", '"x"', "1e999", '{"width": NaN}', "\ud7ff")
_FACTS = (
    *(None, "", "x", [], {}, True, -1, 0, 1, 2, 3, 4, 5, 255, 1.5, 1e300, float("nan"), float("inf"), 1 << 31, 1 << 40),
    *(-(1 << 63), 1 << 64, [0, 0], [1, 0], [0, 1], [1, 1], [-1, 5], [1 << 70, 1], ["a", "b"], [1], "hevc", "rawvideo"),
    *("mjpeg", "png", "libx264", "aac", "srt", "vp9", "libdav1d", 20_000, 16_384, 65_536, "nan", "12"),
)
_PACKETS = [name for name in SCHEMA.names if name.startswith("packet_")]
_VIDEO_ROWS = (0, 1, 2)


def _some(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _kind(rng: np.random.Generator, kinds: Mapping[str, Any] = DAMAGE) -> str:
    return _some(rng, list(kinds))


def _anywhere(files: Files, rng: np.random.Generator) -> Files:
    return files | {MANIFEST: damaged(files[MANIFEST], rng, _kind(rng))}


def _footer(files: Files, rng: np.random.Generator) -> Files:
    """The Parquet file's facts about itself, and the length before its last four bytes."""
    data = files[MANIFEST]
    (length,) = struct.unpack_from("<I", data, len(data) - 8)
    return files | {MANIFEST: damaged(data, rng, _kind(rng, SAME_SIZE), len(data) - 8 - length, len(data))}


def _pages(files: Files, rng: np.random.Generator) -> Files:
    """Pages as they are before compression, so that damage reaches what decodes them."""
    table = pq.read_table(pa.BufferReader(files[MANIFEST]))
    sink = pa.BufferOutputStream()
    dictionary, version = bool(rng.integers(4)), _some(rng, ["1.0", "2.0"])
    pq.write_table(table, sink, compression="none", use_dictionary=dictionary, data_page_version=version)
    data = sink.getvalue().to_pybytes()
    (length,) = struct.unpack_from("<I", data, len(data) - 8)
    return files | {MANIFEST: damaged(data, rng, _kind(rng, SAME_SIZE), 4, len(data) - 8 - length)}


def _rows_file(files: Files, rng: np.random.Generator) -> Files:
    return files | {ROWS: damaged(files[ROWS], rng, _kind(rng))}


def _payload(files: Files, rng: np.random.Generator) -> Files:
    stored = Stored.of(files)
    row = int(rng.integers(len(stored.payloads)))
    stored.payloads[row] = damaged(stored.payloads[row], rng, _kind(rng))
    return stored.files()


LENGTH = (1 << 28) - 1
"""Of the word before a row, the bits that are its length; the others are its version."""


def _length(files: Files, rng: np.random.Generator) -> Files:
    """The length that a row says it has when it is not compressed."""
    stored = Stored.of(files)
    row = int(rng.integers(len(stored.payloads)))
    payload = stored.payloads[row]
    near = int.from_bytes(payload[:4], "little")
    stored.payloads[row] = number(rng, 4, near).to_bytes(4, "little") + payload[4:]
    return stored.files()


def _message(files: Files, rng: np.random.Generator) -> Files:
    """A row's Arrow message: its metadata, the lengths and offsets of its lists, its values."""
    stored = Stored.of(files)
    row = int(rng.integers(len(stored.payloads)))
    payload, codec = stored.payloads[row], pa.Codec("zstd")
    head = int.from_bytes(payload[:4], "little")
    message = codec.decompress(payload[4:], head & LENGTH, asbytes=True)
    metadata = 8 + int.from_bytes(message[4:8], "little")
    begin, end = (0, metadata) if rng.integers(2) else (metadata, len(message))
    message = damaged(message, rng, _kind(rng), begin, end)
    stored.payloads[row] = struct.pack("<I", head & ~LENGTH | len(message)) + codec.compress(message, asbytes=True)
    return stored.files()


def _value(rng: np.random.Generator, kind: pa.DataType, found: Any) -> Any:
    """Another value for a column of this type."""
    if rng.integers(12) == 0:
        return None
    if pa.types.is_list(kind):
        return _list(rng, kind.value_type, found)
    if pa.types.is_struct(kind):
        given = found or {}
        return {field.name: _value(rng, field.type, given.get(field.name)) for field in kind}
    if pa.types.is_floating(kind):
        return _some(rng, _FLOATS)
    if pa.types.is_boolean(kind):
        return bool(rng.integers(2))
    if pa.types.is_integer(kind):
        width = kind.bit_width // 8
        value = number(rng, width, int(found or 0) % (1 << 8 * width))
        return value - (1 << 8 * width) if pa.types.is_signed_integer(kind) and value >> 8 * width - 1 else value
    if pa.types.is_binary(kind):
        return damaged(bytes(found or b"\0"), rng, _kind(rng)) if rng.integers(4) else rng.bytes(int(rng.integers(200)))
    return _some(rng, _TEXTS)


def _list(rng: np.random.Generator, kind: pa.DataType, found: Any) -> Any:
    values = list(found or [])
    how = rng.integers(6)
    if how == 0 or not values:
        return [_value(rng, kind, None) for _ in range(int(rng.integers(0, 4)))]
    if how == 1:
        return values[: int(rng.integers(len(values)))]
    if how == 2:
        return values * 2
    place = int(rng.integers(len(values)))
    values[place] = None if how == 3 and rng.integers(2) else _value(rng, kind, values[place])
    return values


def _row_values(files: Files, rng: np.random.Generator) -> Files:
    return _changed(files, rng, SCHEMA.names, range(5))


def _packet_index(files: Files, rng: np.random.Generator) -> Files:
    return _changed(files, rng, _PACKETS, _VIDEO_ROWS)


def _changed(files: Files, rng: np.random.Generator, names: list[str], rows: Any) -> Files:
    stored = Stored.of(files)
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        row, name = int(_some(rng, rows)), str(_some(rng, names))
        values = stored.row(row)
        if name == "packet_stream" and values[name]:
            value: Any = _stream(rng, values[name])
        else:
            value = _value(rng, SCHEMA.field(name).type, values[name])
        stored.repack(row, {name: value})
    return stored.files()


def _stream(rng: np.random.Generator, found: str) -> str:
    if rng.integers(6) == 0:
        return _some(rng, _JSONS)
    facts = json.loads(found)
    for _ in range(int(rng.choice([1, 1, 2]))):
        name = str(_some(rng, list(facts)))
        facts[name] = _some(rng, _FACTS)
    return json.dumps(facts)


def _span(files: Files, rng: np.random.Generator) -> Files:
    """A clip at another place of its video, or at none; longer, shorter, slower."""
    stored, row = Stored.of(files), int(_some(rng, _VIDEO_ROWS))
    start = float(_some(rng, [0.1, 1.5, 60.0, -5.0, 1e6, 1e9, 1e12, 1e15, -1e15, 2.0**52]))
    scale = float(_some(rng, [1.0, 1.0, 0.5, 1e-3, 1e6, 1e12]))
    times = {"start_s": start, "end_s": start + scale * float(_some(rng, [1.0, 1.5, 3.0, 10.0])), "time_scale": scale}
    fps = {"fps": float(_some(rng, [30.0, 1e-9, 1e3, 1e300]))} if rng.integers(3) == 0 else {}
    index = {"packet_stream": ""} if rng.integers(2) else {}
    stored.repack(row, times | fps | index)
    return stored.files()


def _index_values(files: Files, rng: np.random.Generator) -> Files:
    """Columns of the Parquet file; where rows lie among them."""
    table = pq.read_table(pa.BufferReader(files[MANIFEST]))
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        place = ["row_offset", "row_size", "row_crc"]
        name = str(_some(rng, place if rng.integers(2) else INDEX_SCHEMA.names))
        values, row = table[name].to_pylist(), int(rng.integers(len(table)))
        values[row] = _value(rng, INDEX_SCHEMA.field(name).type, values[row])
        column = pa.array(values, INDEX_SCHEMA.field(name).type)
        table = table.set_column(table.schema.get_field_index(name), INDEX_SCHEMA.field(name), column)
    return files | {MANIFEST: parquet_bytes(table)}


def _index_schema(files: Files, rng: np.random.Generator) -> Files:
    """Columns lost, doubled, renamed, of another type; rows lost or doubled; other metadata."""
    table = pq.read_table(pa.BufferReader(files[MANIFEST]))
    metadata: Any = table.schema.metadata
    place, how = int(rng.integers(table.num_columns)), rng.integers(7)
    name = table.column_names[place]
    if how == 0:
        table = table.remove_column(place)
    elif how == 1:
        table = table.append_column(name, table[name])
    elif how == 2:
        table = table.rename_columns([f"{c}\0" if c == name else c for c in table.column_names])
    elif how == 3:
        other = _some(rng, [pa.string(), pa.large_string(), pa.float32(), pa.int8(), pa.binary(), pa.bool_()])
        table = table.set_column(place, name, pa.array([None] * len(table), other))
    elif how == 4:
        table = table.take(pa.array(_some(rng, [[], [0], [4, 3, 2, 1, 0], [0, 0, 1, 1, 2]]), pa.int64()))
    elif how == 5:
        table = table.set_column(place, name, table[name].dictionary_encode()) if place < 5 else table.select([name])
    else:
        version = _some(rng, [b"", b"1", b"2 ", b"\xff\xfe", b"2\0"])
        metadata = {key: version for key in metadata} if rng.integers(2) else {b"other": b"x"}
    return files | {MANIFEST: parquet_bytes(table.replace_schema_metadata(metadata))}


IN_MANIFEST: dict[str, Callable[[Files, np.random.Generator], Files]] = {
    "Parquet file": _anywhere,
    "Parquet footer": _footer,
    "Parquet pages": _pages,
    "Parquet columns": _index_values,
    "Parquet schema": _index_schema,
    "rows": _rows_file,
    "rows, check sum right": _payload,
    "a row's length, check sum right": _length,
    "a row's Arrow message, check sum right": _message,
    "a row's columns": _row_values,
    "packet index": _packet_index,
    "span": _span,
}
"""name -> both files with a change."""
