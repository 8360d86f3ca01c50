"""Whole manifest rows, one after another in a `.rows` file, each readable by one ranged read.

A row is an Arrow record batch of one row in `rows.SCHEMA` (poses, text, packet index, signals), compressed with zstd by itself, after a
word with its length and version, so that rows of several versions may lie in one file. Offset, size and CRC-32 of a row are in the
Parquet file of the same name. Parquet alone would not do: its unit of reading is a row group, whose facts for every column must be in
memory, so that small groups cost gigabytes and large ones megabytes per row.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa

from jala_ray import storage
from jala_ray.data.manifest.places import RowAddress
from jala_ray.data.manifest.rows import SCHEMA, SCHEMA_2, SINCE_3, as_version_3, table_row
from jala_ray.storage import StorageOptions
from jala_ray.types import ManifestError

SUFFIX = ".rows"
LEVEL = 3
MAX_ROW_BYTES = 64 * 2**20
"""A row before compression. The longest clips take a few megabytes; a damaged length must not ask for gigabytes."""
_HEAD = struct.Struct("<I")
"""Bytes of the row before compression, and in the four highest bits its version; 0 is version 2, which had no such bits."""
_LENGTH_BITS = 28
_VERSION = 3
_SCHEMAS = {0: SCHEMA_2, _VERSION: SCHEMA}
_CODEC = pa.Codec("zstd", LEVEL)
_REMEDY = "The file is damaged: write it again."


def pack(table: pa.Table) -> Iterable[bytes]:
    """The stored form of every row of a table in `rows.SCHEMA`. Raises `ManifestError` for a row that is too large."""
    for batch in table.combine_chunks().to_batches():
        for i in range(batch.num_rows):
            message = batch.slice(i, 1).serialize()
            payload = _HEAD.pack(_VERSION << _LENGTH_BITS | message.size) + _CODEC.compress(message, asbytes=True)
            largest = max(message.size, len(payload))
            if largest > MAX_ROW_BYTES:
                raise ManifestError("row", f"{largest} bytes", f"at most {MAX_ROW_BYTES}", "Cut shorter clips.")
            yield payload


def crc(payload: bytes) -> int:
    return zlib.crc32(payload)


def fetch(address: RowAddress, options: StorageOptions | None = None) -> bytes:
    """The stored row. Raises `StorageError`, and `ManifestError` where its bytes are not those that were written."""
    if address.offset < 0 or not 0 < address.size <= MAX_ROW_BYTES:
        raise _misplaced(address)
    payload = storage.read_range(address.file, address.offset, address.offset + address.size, options)
    if crc(payload) != address.crc:
        raise _damaged(address)
    return payload


def fetch_all(addresses: Sequence[RowAddress], options: StorageOptions | None = None) -> list[pa.Table | ManifestError]:
    """Neighbouring rows of one file: for each the result of `unpack`, or its error. One read where they lie as they were written."""
    together = all(a.offset + a.size == b.offset for a, b in pairwise(addresses))
    end = storage.size(addresses[0].file, options)
    if not together or addresses[0].offset < 0 or addresses[-1].offset + addresses[-1].size > end:
        return [_tried(address, end, options) for address in addresses]
    begin = addresses[0].offset
    block = storage.read_range(addresses[0].file, begin, addresses[-1].offset + addresses[-1].size, options)
    found: list[pa.Table | ManifestError] = []
    for address in addresses:
        payload = block[address.offset - begin : address.offset - begin + address.size]
        try:
            found.append(unpack(payload) if crc(payload) == address.crc else _damaged(address))
        except ManifestError as error:
            found.append(error)
    return found


def _tried(address: RowAddress, end: int, options: StorageOptions | None) -> pa.Table | ManifestError:
    """A row of a file of `end` bytes that may not lie where it should."""
    if address.offset + address.size > end:
        return _misplaced(address)
    try:
        return unpack(fetch(address, options))
    except ManifestError as error:
        return error


def _misplaced(address: RowAddress) -> ManifestError:
    found = f"{address.size} bytes at {address.offset}"
    return ManifestError(f"place of a row in {address.file}", found, "a stretch of the file", _REMEDY)


def _damaged(address: RowAddress) -> ManifestError:
    place = f"row at byte {address.offset} of {address.file}"
    return ManifestError(place, "other bytes", "those that were written", _REMEDY)


def _unpacked(payload: bytes) -> pa.RecordBatch:
    """The row in the schema of its version.

    Raises `ManifestError` where the bytes are no row. They may be none although the checksum is right (`fetch`): it was taken of whatever
    was written. Arrow's full validation comes first because using a batch with wrong offsets ends the process (SIGABRT).
    """
    try:
        (head,) = _HEAD.unpack_from(payload)
        version, length = head >> _LENGTH_BITS, head & (1 << _LENGTH_BITS) - 1
        if version not in _SCHEMAS or length > MAX_ROW_BYTES:
            found = f"version {version}, {length} bytes"
            raise ManifestError("row", found, f"a version that is known, at most {MAX_ROW_BYTES} bytes", _REMEDY)
        message = _CODEC.decompress(memoryview(payload)[_HEAD.size :], length)
        batch = pa.ipc.read_record_batch(message, _SCHEMAS[version])
        batch.validate(full=True)
    except (struct.error, pa.ArrowException, OSError, EOFError) as error:
        raise ManifestError("row", str(error), "an Arrow record batch", _REMEDY) from error
    if batch.num_rows != 1:
        raise ManifestError("row", f"{batch.num_rows} rows", "one", _REMEDY)
    return batch


def unpack(payload: bytes) -> pa.Table:
    """The row as a table of one row in `rows.SCHEMA`, whatever its version. Raises `ManifestError` where the bytes are no row."""
    return as_version_3(pa.Table.from_batches([_unpacked(payload)]))


def unpack_row(payload: bytes) -> dict[str, Any]:
    """The row by column: scalars, strings, and numpy arrays for lists of numbers. Raises as `unpack` does."""
    row = table_row(pa.Table.from_batches([_unpacked(payload)]), 0)
    return {name: [] for name in SINCE_3} | row
