"""The manifest: one row per (clip, task type), with text, camera, hand poses (docs/manifest.md).

A manifest is a `.parquet` file with a `.rows` file beside it, or a folder of such pairs. The Parquet files hold what planning needs of
every row; the whole rows lie one after another in the `.rows` files, each to be had by one ranged read (`rowfile.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice, pairwise
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from jala_ray import storage
from jala_ray.data.manifest import rowfile
from jala_ray.data.manifest.examine import Videos, examine
from jala_ray.data.manifest.files import files_in_force, rows_file
from jala_ray.data.manifest.places import RowAddress
from jala_ray.data.manifest.rows import (
    INDEX_COLUMNS,
    SCHEMA,
    SINCE_3,
    VERSION_KEY,
    check_schema,
    clip_id,
    clip_to_row,
    row_to_clip,
    table_row,
    with_empty,
)
from jala_ray.data.manifest.validation import RowProblem
from jala_ray.data.manifest.writing import Rejection, WriteReport, absolute, write_manifest
from jala_ray.storage import StorageOptions
from jala_ray.storage.stores import explained
from jala_ray.types import Clip, ManifestError

__all__ = [
    "INDEX_COLUMNS",
    "SCHEMA",
    "VERSION_KEY",
    "Manifest",
    "Rejection",
    "RowAddress",
    "WriteReport",
    "clip_id",
    "clip_to_row",
    "row_to_clip",
    "validate",
    "write_manifest",
]

T = TypeVar("T")

SCAN_ROWS = 256
"""Rows read at once where all of a manifest are read in order."""
_REPEATING = ["source", "domain", "split", "task_type", "left_state", "right_state"]
_PLACE = {"row_offset": -1, "row_size": -1, "row_crc": 0}
"""Where a row lies, and what a null there reads: nowhere, so that the row is refused when it is asked for."""


class Manifest:
    """A stored manifest, read lazily: `index` is the light columns of all rows, `clip(i)` is one ranged read.

    Picklable (a worker opens it again by its path).
    """

    def __init__(self, path: str | os.PathLike[str], options: StorageOptions | None = None) -> None:
        self.path, self.options = absolute(path), options
        self._fs, root = storage.filesystem(self.path, options)
        with explained("read manifest", self.path, options):
            self.base, self._files = _manifest_files(self._fs, root, self.path, options)
            metadata = [self._metadata(file) for file in self._files]
        self.starts = np.cumsum([0, *(found.num_rows for found in metadata)], dtype=np.int64)
        """(files + 1,) first row of each file, and the number of rows."""
        self.row_files = [
            rows_file(self._shown(file), found.metadata) for file, found in zip(self._files, metadata, strict=True)
        ]
        """Address of each file of rows."""

    def _metadata(self, file: str) -> pq.FileMetaData:
        try:
            metadata = pq.read_metadata(file, filesystem=self._fs)
            schema = metadata.schema.to_arrow_schema()
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise ManifestError(file, str(error), "a whole Parquet file", "Write it again.") from error
        check_schema(schema, file)
        return metadata

    def _shown(self, file: str) -> str:
        """Address of a file as the rest of the package wants it: with s3:// where it lies there."""
        return f"s3://{file}" if storage.is_s3(self.path) else file

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __reduce__(self):
        return type(self), (self.path, self.options)

    def __iter__(self) -> Iterator[Clip]:
        for _, table in self.scan():
            if isinstance(table, ManifestError):
                raise table
            yield row_to_clip(table_row(table, 0), self.base)

    @cached_property
    def index(self) -> pa.Table:
        """`INDEX_COLUMNS` of every row, and `has_video` (bool): no poses, no text."""
        table = self.columns(INDEX_COLUMNS)
        return table.append_column("has_video", table["video_uri"].is_valid())

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of the Parquet files, of every row; words that repeat are dictionary-encoded."""
        tables = [self.file_columns(file, names) for file in range(len(self._files))]
        return pa.concat_tables(tables).unify_dictionaries()

    def file_columns(self, file: int, names: Sequence[str]) -> pa.Table:
        """The same of one file. Raises `ManifestError` where it is damaged, `StorageError` where it cannot be reached."""
        path = self._files[file]
        repeating = [name for name in _REPEATING if name in names]
        try:
            with explained("read manifest", self.path, self.options):
                stored = pq.ParquetFile(path, filesystem=self._fs, read_dictionary=repeating)
                lacking = [name for name in names if name in SINCE_3 and name not in stored.schema_arrow.names]
                table = stored.read(columns=[name for name in names if name not in lacking])
            table.validate(full=True)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise ManifestError(path, str(error), "readable columns", "The file is damaged: write it again.") from error
        for name in table.column_names:
            if name in _PLACE and table[name].null_count:
                filled = pc.fill_null(table[name], _PLACE[name])
                table = table.set_column(table.column_names.index(name), table.schema.field(name), filled)
        return with_empty(table, lacking).select(list(names))

    @cached_property
    def places(self) -> Mapping[str, np.ndarray]:
        """Where every row lies in its file: `row_offset` (R,) int64, `row_size` (R,) int32, `row_crc` (R,) uint32."""
        table = self.columns([*_PLACE])
        return {name: table[name].to_numpy() for name in _PLACE}

    def address(self, i: int) -> RowAddress:
        """Where row `i` lies. The first call reads the places of all rows."""
        if not 0 <= i < len(self):
            raise ManifestError("row", i, f"0 <= row < {len(self)}", f"The manifest is {self.path}.")
        file = int(np.searchsorted(self.starts, i, side="right")) - 1
        offset, size, crc = (int(self.places[name][i]) for name in _PLACE)
        return RowAddress(self.row_files[file], offset, size, crc)

    def row(self, i: int) -> dict[str, Any]:
        """Row `i` as a dict, list columns as numpy arrays; `video_uri` as stored."""
        return rowfile.unpack_row(rowfile.fetch(self.address(i), self.options))

    def clip(self, i: int) -> Clip:
        """Clip of row `i`."""
        return row_to_clip(self.row(i), self.base)

    def take(self, indices: Sequence[int] | np.ndarray) -> list[Clip]:
        """Clips of many rows, in the order asked for; each row is read once."""
        clips: dict[int, Clip] = {i: self.clip(i) for i in sorted({int(i) for i in indices})}
        return [clips[int(i)] for i in indices]

    def scan(self) -> Iterator[tuple[int, pa.Table | ManifestError]]:
        """Every row in order, as a table of one row in `SCHEMA`, or why it cannot be read."""
        return chain.from_iterable(self.batches())

    def batches(self) -> Iterator[list[tuple[int, pa.Table | ManifestError]]]:
        """The same in lists of some hundreds, each of which comes in one read."""
        for first, last in pairwise(self.starts.tolist()):
            for begin in range(first, last, SCAN_ROWS):
                rows = range(begin, min(begin + SCAN_ROWS, last))
                found = rowfile.fetch_all([self.address(i) for i in rows], self.options)
                yield list(zip(rows, found, strict=True))


def validate(
    path: str | os.PathLike[str], options: StorageOptions | None = None, *, videos: Videos = "some"
) -> list[RowProblem]:
    """Every problem of a stored manifest and of its videos (`examine.examine`)."""
    return examine(Manifest(path, options), videos).problems


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter (itertools has it from Python 3.12)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _manifest_files(
    fs: pafs.FileSystem, root: str, shown: str, options: StorageOptions | None
) -> tuple[str, list[str]]:
    """The folder that relative videos count from, and the Parquet files in order."""
    kind = fs.get_file_info(root).type
    if kind == pafs.FileType.File:
        return shown.rpartition("/")[0], [root]
    files = files_in_force(fs, root, shown, options)
    if not files:
        raise ManifestError(
            "manifest path",
            shown,
            "a .parquet file or a folder that holds some",
            "Make one with `jala convert`.",
        )
    return shown, files
