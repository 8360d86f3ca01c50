"""The manifest: one Parquet row per (clip, task type), with text, camera, hand poses (docs/manifest.md).

A manifest is one `.parquet` file or a folder of them. Poses are flat list columns, so a row streams through
Arrow without a pickle; row groups are small, so that one clip can be read without its neighbours.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from jala_ray import storage
from jala_ray.data.rows import SCHEMA, VERSION_KEY, check_schema, clip_id, clip_to_row, row_to_clip, table_row
from jala_ray.data.validation import DUPLICATE, RowProblem, validate_table
from jala_ray.data.writing import Rejection, WriteReport, absolute, parquet_files, write_manifest
from jala_ray.storage import StorageOptions
from jala_ray.storage.stores import explained
from jala_ray.types import Clip, ManifestError

__all__ = [
    "INDEX_COLUMNS",
    "SCHEMA",
    "VERSION_KEY",
    "Manifest",
    "Rejection",
    "WriteReport",
    "clip_id",
    "clip_to_row",
    "row_to_clip",
    "validate",
    "write_manifest",
]

CACHED_GROUPS = 8
INDEX_COLUMNS = (
    *("clip_id", "source", "domain", "split", "task_type", "start_s", "end_s", "fps", "time_scale"),
    *("n_chunks", "left_state", "right_state", "left_labelled", "right_labelled"),
)
_REPEATING = ["source", "domain", "split", "task_type", "left_state", "right_state"]


class Manifest:
    """A stored manifest, read lazily: `index` is the light columns of all rows, `clip(i)` reads a row group.

    Picklable (a worker opens it again by its path); one instance serves one thread.
    """

    def __init__(self, path: str | os.PathLike[str], options: StorageOptions | None = None) -> None:
        self.path, self.options = absolute(path), options
        self._groups: list[tuple[str, int]] = []
        self._open: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        self._fs, root = storage.filesystem(self.path, options)
        with explained("read manifest", self.path, options):
            self.base, self._files = _manifest_files(self._fs, root, self.path)
            self.group_starts = self._scan()
            """(G + 1,) first row of each row group, and the number of rows."""

    def _scan(self) -> np.ndarray:
        starts = [0]
        for file in self._files:
            try:
                metadata = pq.read_metadata(file, filesystem=self._fs)
            except pa.ArrowInvalid as error:
                raise ManifestError(file, str(error), "a whole Parquet file", "Write it again.") from error
            check_schema(metadata.schema.to_arrow_schema(), file)
            for group in range(metadata.num_row_groups):
                starts.append(starts[-1] + metadata.row_group(group).num_rows)
                self._groups.append((file, group))
        return np.asarray(starts, np.int64)

    def __len__(self) -> int:
        return int(self.group_starts[-1])

    def __reduce__(self):
        return type(self), (self.path, self.options)

    def __iter__(self) -> Iterator[Clip]:
        for group in range(len(self._groups)):
            table = self.read_group(group)
            for i in range(table.num_rows):
                yield row_to_clip(table_row(table, i), self.base)

    @cached_property
    def index(self) -> pa.Table:
        """`INDEX_COLUMNS` of every row, and `has_video` (bool): what planning needs; no poses or text."""
        tables = []
        for file in self._files:
            source = pq.ParquetFile(file, filesystem=self._fs, read_dictionary=[*_REPEATING, "video_uri"])
            table = source.read(columns=[*INDEX_COLUMNS, "video_uri"])
            has_video = table["video_uri"].is_valid()
            tables.append(table.drop_columns("video_uri").append_column("has_video", has_video))
        return pa.concat_tables(tables).unify_dictionaries()

    def row(self, i: int) -> dict[str, Any]:
        """Row `i` as a dict, list columns as numpy arrays; `video_uri` as stored."""
        if not 0 <= i < len(self):
            raise ManifestError("row", i, f"0 <= row < {len(self)}", f"The manifest is {self.path}.")
        group = int(np.searchsorted(self.group_starts, i, side="right")) - 1
        return table_row(self._group(group), i - int(self.group_starts[group]))

    def clip(self, i: int) -> Clip:
        """Clip of row `i`. Reads the row group that holds it; the last few row groups stay in memory."""
        return row_to_clip(self.row(i), self.base)

    def take(self, indices: Sequence[int] | np.ndarray) -> list[Clip]:
        """Clips of many rows, in the order asked for; each row group is read once."""
        clips: dict[int, Clip] = {i: self.clip(i) for i in sorted({int(i) for i in indices})}
        return [clips[int(i)] for i in indices]

    def read_group(self, group: int) -> pa.Table:
        """All columns of one row group, past the cache."""
        file, number = self._groups[group]
        if file not in self._open:
            self._open[file] = pq.ParquetFile(file, filesystem=self._fs)
            if len(self._open) > CACHED_GROUPS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(file)
        with explained("read manifest", self.path, self.options):
            return self._open[file].read_row_group(number, columns=SCHEMA.names)

    def _group(self, group: int) -> pa.Table:
        if group not in self._cache:
            self._cache[group] = self.read_group(group)
            if len(self._cache) > CACHED_GROUPS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        return self._cache[group]


def validate(path: str | os.PathLike[str], options: StorageOptions | None = None) -> list[RowProblem]:
    """Every problem of a stored manifest, row by row, duplicates over all of its files included."""
    manifest = Manifest(path, options)
    problems: list[RowProblem] = []
    for group, first in enumerate(manifest.group_starts[:-1]):
        found = validate_table(manifest.read_group(group), first_row=int(first))
        problems += [problem for problem in found if problem.field != DUPLICATE]
    return sorted(problems + _duplicates(manifest.index), key=lambda problem: problem.row)


def _duplicates(index: pa.Table) -> list[RowProblem]:
    """Rows of an index whose (clip_id, task_type) an earlier row already has."""
    keys = index.select(["clip_id", "task_type"])
    keys = keys.append_column("row", pa.array(np.arange(len(keys))))
    counts = keys.group_by(["clip_id", "task_type"]).aggregate([("row", "count"), ("row", "list")])
    problems = []
    repeated = counts.filter(pa.array(counts["row_count"].to_numpy() > 1))
    for key in repeated.to_pylist():
        for row in sorted(key["row_list"])[1:]:
            problems.append(RowProblem.duplicate(row, key["clip_id"], key["task_type"]))
    return problems


def _manifest_files(fs: pafs.FileSystem, root: str, shown: str) -> tuple[str, list[str]]:
    """The folder that relative videos count from, and the Parquet files in order."""
    kind = fs.get_file_info(root).type
    if kind == pafs.FileType.File:
        return shown.rpartition("/")[0], [root]
    files = parquet_files(fs, root)
    if not files:
        raise ManifestError(
            "manifest path",
            shown,
            "a .parquet file or a folder that holds some",
            "Make one with `python -m jala_ray.data convert`.",
        )
    return shown, files
