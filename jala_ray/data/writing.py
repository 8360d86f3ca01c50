"""Writing a manifest: rows are validated as they stream by; bad ones are set aside, with the reason."""

from __future__ import annotations

import contextlib
import functools
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from jala_ray import storage
from jala_ray.data import rowfile
from jala_ray.data.rows import BASE_SCHEMA, INDEX_SCHEMA, SCHEMA, base_row, derived_row, rows_to_table
from jala_ray.data.validation import RowProblem, validate_table
from jala_ray.storage import StorageOptions
from jala_ray.storage.stores import explained
from jala_ray.types import Clip, ManifestError, UserError

T = TypeVar("T")

FLUSH_ROWS = 128
FLUSH_BYTES = 2 << 20
"""Rows are validated and written in batches of so many rows or bytes of poses, whichever comes first."""
ROWS_PER_FILE = 65_536
ERROR_SCHEMA = BASE_SCHEMA.append(pa.field("problems", pa.list_(pa.string())))


@dataclass(frozen=True)
class Rejection:
    """A clip that could not be made at all (its video does not open, its file is damaged), and why."""

    clip_id: str
    source: str
    video_uri: str | None
    reason: str


@dataclass(frozen=True)
class WriteReport:
    """What `write_manifest` left behind."""

    path: str
    rows: int
    quarantined: int
    errors_path: str | None
    """Where the quarantined rows lie with their reasons; None when there are none."""


def write_manifest(
    clips: Iterable[Clip | Rejection],
    path: str | os.PathLike[str],
    *,
    on_error: Literal["raise", "quarantine"] = "raise",
    rows_per_file: int = ROWS_PER_FILE,
    base: str | None = None,
    options: StorageOptions | None = None,
) -> WriteReport:
    """Stream clips into a manifest at `path`: a file if it ends in `.parquet`, else a folder of parts.

    Every row is validated. With `on_error="quarantine"`, rows that break a rule go, whole and with their
    reasons, to `errors/<name>.parquet` beside the manifest; with "raise" the first one stops the writing and
    nothing is left. A manifest already there is replaced. Video addresses under the manifest's folder are
    stored relative to it (to `base` instead, if given), so that the folder can be moved or uploaded.

    Raises ManifestError (a bad row, or a folder that holds foreign Parquet files) and StorageError.
    """
    if on_error not in ("raise", "quarantine"):
        raise ManifestError("on_error", on_error, "'raise' or 'quarantine'")
    place = absolute(path)
    with explained("write manifest", place, options):
        writer = _Writer(place, rows_per_file, on_error == "quarantine", options, base)
    try:
        for item in clips:
            with explained("write manifest", place, options):
                writer.add(item)
        with explained("write manifest", place, options):
            return writer.close()
    except BaseException:
        writer.discard()
        raise


class _Writer:
    """Buffers rows, writes the good ones into parts, and the bad ones into the quarantine."""

    def __init__(
        self, path: str, rows_per_file: int, quarantine: bool, options: StorageOptions | None, base: str | None
    ) -> None:
        self.path, self.rows_per_file, self.quarantine = path, rows_per_file, quarantine
        self.single = path.endswith(".parquet")
        self.fs, root = storage.filesystem(path, options)
        self.folder = root.rpartition("/")[0] if self.single else root
        self.home = path.rpartition("/")[0] if self.single else path
        self.base = self.home if base is None else absolute(base)
        name = root.rpartition("/")[2].removesuffix(".parquet") if self.single else "rows"
        self.error_file = f"{self.folder}/errors/{name}.parquet"
        self.errors_path = storage.join(self.home, "errors", f"{name}.parquet")
        self.root = root
        self.files: list[str] = []
        self.out: Part | None = None
        self.error_out: pq.ParquetWriter | None = None
        self.buffer: list[tuple[Clip, dict[str, Any]]] = []
        self.buffered_bytes = self.rows = self.file_rows = self.seen = self.quarantined = self.parts = 0
        self.keys: set[int] = set()
        self._clear_old()

    def add(self, item: Clip | Rejection) -> None:
        if isinstance(item, Rejection):
            self._flush()
            problem = RowProblem(self.seen, item.clip_id, "clip", item.video_uri, item.reason)
            row = dict.fromkeys(BASE_SCHEMA.names)
            row |= {"clip_id": item.clip_id, "source": item.source, "video_uri": item.video_uri}
            self._reject(row, [problem])
            self.seen += 1
            return
        row = base_row(item)
        row["video_uri"] = _relative(row["video_uri"], self.base)
        self.buffer.append((item, row))
        self.buffered_bytes += sum(value.nbytes for value in row.values() if isinstance(value, np.ndarray))
        full = len(self.buffer) >= min(FLUSH_ROWS, self.rows_per_file)
        if full or self.buffered_bytes >= FLUSH_BYTES:
            self._flush()

    def close(self) -> WriteReport:
        self._flush()
        if self.out is None:
            self.out = self._next_file()  # a manifest without rows is still a manifest
        for out in (self.error_out, self.out):  # The index last: a manifest that is there has its errors beside it.
            if out is not None:
                out.close()
        errors = self.errors_path if self.quarantined else None
        return WriteReport(self.path, self.rows, self.quarantined, errors)

    def adopt(self, index: pa.Table, rows: bytes, errors: pa.Table | None) -> None:
        """Append a written manifest's index, rows and errors as they are."""
        if len(index):
            if self.out is None or (self.file_rows >= self.rows_per_file and not self.single):
                self.out = self._next_file()
            self.out.append(index, rows)
            self.rows += len(index)
            self.file_rows += len(index)
        if errors is not None and len(errors):
            self._errors().write_table(errors)
            self.quarantined += len(errors)

    def discard(self) -> None:
        """Leave nothing, as far as the store allows; the error that led here is the one to report."""
        with contextlib.suppress(OSError):
            if self.out is not None:
                self.out.abandon()
            if self.error_out is not None:
                self.error_out.close()
            for file in self.files:
                if self.fs.get_file_info(file).type == pafs.FileType.File:
                    self.fs.delete_file(file)

    def _flush(self) -> None:
        if not self.buffer:
            return
        table = rows_to_table([row for _, row in self.buffer], BASE_SCHEMA)
        problems: dict[int, list[RowProblem]] = {}
        for problem in validate_table(table, first_row=self.seen, seen=self.keys):
            problems.setdefault(problem.row - self.seen, []).append(problem)
        good = []
        for i, (clip, row) in enumerate(self.buffer):
            if i in problems:
                self._reject(row, problems[i])
                continue
            try:
                good.append(row | derived_row(clip))
            except UserError as error:  # a rule of the resampling that the table's rules do not cover
                problem = RowProblem(self.seen + i, clip.clip_id, error.field, error.value, error.expected)
                self._reject(row, [problem])
        if good:
            if self.out is None or (self.file_rows >= self.rows_per_file and not self.single):
                self.out = self._next_file()
            self.out.add(rows_to_table(good, SCHEMA))
            self.rows += len(good)
            self.file_rows += len(good)
        self.seen += len(self.buffer)
        self.buffer, self.buffered_bytes = [], 0

    def _reject(self, row: dict[str, Any], problems: list[RowProblem]) -> None:
        if not self.quarantine:
            raise problems[0].error()
        row = row | {"problems": [str(problem) for problem in problems]}
        self._errors().write_table(rows_to_table([row], ERROR_SCHEMA))
        self.quarantined += 1

    def _errors(self) -> pq.ParquetWriter:
        if self.error_out is None:
            self.fs.create_dir(self.error_file.rpartition("/")[0], recursive=True)
            self.error_out = self._open(self.error_file, ERROR_SCHEMA)
        return self.error_out

    def _next_file(self) -> Part:
        if self.out is not None:
            self.out.close()
        file = self.root if self.single else f"{self.folder}/part-{self.parts:05d}.parquet"
        self.file_rows, self.parts = 0, self.parts + 1
        self.files += [file, rows_file(file)]
        return Part(file, self.fs)

    def _open(self, file: str, schema: pa.Schema) -> pq.ParquetWriter:
        self.files.append(file)
        return pq.ParquetWriter(file, schema, filesystem=self.fs, compression="zstd")

    def _clear_old(self) -> None:
        self.fs.create_dir(self.folder, recursive=True)
        old = [self.root] if self.single else parquet_files(self.fs, self.root)
        foreign = [file for file in old if not self.single and not file.rpartition("/")[2].startswith("part-")]
        if foreign:
            raise ManifestError(
                "manifest path",
                self.path,
                "an empty folder or an earlier manifest",
                f"It holds {foreign[0]}.",
            )
        for file in [*old, *map(rows_file, old), self.error_file]:
            if self.fs.get_file_info(file).type == pafs.FileType.File:
                self.fs.delete_file(file)


class Part:
    """One Parquet file of a manifest and its rows. The Parquet file comes last: rows without one are no manifest."""

    def __init__(self, file: str, fs: pafs.FileSystem) -> None:
        self.file, self.fs, self.end = file, fs, 0
        self.rows = fs.open_output_stream(rows_file(file), compression=None)
        self.index: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Append rows (a table in `rows.SCHEMA`)."""
        payloads = list(rowfile.pack(table))
        sizes = np.array([len(payload) for payload in payloads], np.int32)
        offsets = self.end + np.cumsum(sizes, dtype=np.int64) - sizes
        place = {
            "row_offset": offsets,
            "row_size": sizes,
            "row_crc": np.array(list(map(rowfile.crc, payloads)), np.uint32),
        }
        columns = [pa.array(place[n]) if n in place else table[n] for n in INDEX_SCHEMA.names]
        self.index.append(pa.Table.from_arrays(columns, schema=INDEX_SCHEMA))
        for payload in payloads:
            self.rows.write(payload)
        self.end += int(sizes.sum())

    def append(self, index: pa.Table, rows: bytes) -> None:
        """Append stored rows with their index, whose offsets count from the beginning of `rows`."""
        moved = pa.array(index["row_offset"].to_numpy() + self.end)
        table = index.set_column(index.schema.get_field_index("row_offset"), INDEX_SCHEMA.field("row_offset"), moved)
        self.index.append(table.select(INDEX_SCHEMA.names).replace_schema_metadata(INDEX_SCHEMA.metadata))
        self.rows.write(rows)
        self.end += len(rows)

    def close(self) -> None:
        self.rows.close()
        index = pa.concat_tables(self.index) if self.index else INDEX_SCHEMA.empty_table()
        if isinstance(self.fs, pafs.LocalFileSystem):  # An object is there when it is whole; a file must be renamed.
            folder, _, name = self.file.rpartition("/")
            partial = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.part"
            pq.write_table(index, partial, filesystem=self.fs, compression="zstd")
            self.fs.move(partial, self.file)
        else:
            pq.write_table(index, self.file, filesystem=self.fs, compression="zstd")

    def abandon(self) -> None:
        self.rows.close()


def merge_manifests(parts: Sequence[str], path: str, options: StorageOptions | None = None) -> WriteReport:
    """Join manifests (single `.parquet` files whose rows are relative to `path`, with their errors beside them) into one folder.

    Rows are copied as they are stored. A manifest already there is replaced. Raises ManifestError and StorageError.
    """
    place = absolute(path)
    with explained("write manifest", place, options):
        writer = _Writer(place, ROWS_PER_FILE, True, options, None)
    try:
        with ThreadPoolExecutor(READERS) as readers:
            for part in _ahead(readers, [functools.partial(_read_part, part, options) for part in parts]):
                with explained("write manifest", place, options):
                    writer.adopt(*part)
        with explained("write manifest", place, options):
            return writer.close()
    except BaseException:
        writer.discard()
        raise


READERS = 16


def _ahead(pool: ThreadPoolExecutor, calls: Sequence[Callable[[], T]]) -> Iterator[T]:
    """Results of the calls in order, some of them made before they are asked for."""
    waiting: deque[Future[T]] = deque()
    for call in calls:
        waiting.append(pool.submit(call))
        if len(waiting) > 2 * READERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read_part(path: str, options: StorageOptions | None) -> tuple[pa.Table, bytes, pa.Table | None]:
    """Index, rows and errors of a single-file manifest."""
    fs, file = storage.filesystem(path, options)
    index = pq.read_table(file, filesystem=fs)
    folder, _, name = file.rpartition("/")
    errors = f"{folder}/errors/{name}"
    found = fs.get_file_info(errors).type == pafs.FileType.File
    return index, storage.read_bytes(rows_file(path), options), pq.read_table(errors, filesystem=fs) if found else None


def rows_file(parquet: str) -> str:
    """The file that holds the rows of a manifest's Parquet file."""
    return parquet.removesuffix(".parquet") + rowfile.SUFFIX


def parquet_files(fs: pafs.FileSystem, root: str) -> list[str]:
    """The Parquet files that lie directly in a folder, in order."""
    infos = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    return sorted(info.path for info in infos if info.is_file and info.path.endswith(".parquet"))


def _relative(uri: str | None, base: str) -> str | None:
    return uri.removeprefix(f"{base}/") if uri is not None else None


def absolute(path: str | os.PathLike[str]) -> str:
    """A manifest's path, independent of the working folder."""
    return storage.absolute(path)
