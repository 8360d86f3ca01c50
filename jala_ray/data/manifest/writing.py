"""Writing a manifest: rows are validated as they stream by; bad ones are set aside, with the reason."""

from __future__ import annotations

import functools
import os
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
from jala_ray.data.manifest.files import ManifestPart, Replacement, rows_file
from jala_ray.data.manifest.places import stored_uri
from jala_ray.data.manifest.rows import BASE_SCHEMA, SCHEMA, base_row, derived_row, rows_to_table
from jala_ray.data.manifest.signals import views_to_row
from jala_ray.data.manifest.validation import RowProblem, validate_table
from jala_ray.storage import StorageOptions
from jala_ray.storage.stores import explained
from jala_ray.types import Clip, ManifestError, StorageError, UserError

T = TypeVar("T")

FLUSH_ROWS = 128
FLUSH_BYTES = 2 << 20
"""Rows are validated and written in batches of so many rows or bytes of poses, whichever comes first."""
ERROR_ROWS = 1024
"""The same of rows that are set aside: a row group of their table costs 100 kB of memory, however few it holds."""
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
    replaced: bool
    """Whether a manifest was there before."""

    def told(self) -> str:
        """One line for a person."""
        return f"{self.path}: {self.rows} rows" + (", in place of the manifest that was there" if self.replaced else "")


def write_manifest(
    clips: Iterable[Clip | Rejection],
    path: str | os.PathLike[str],
    *,
    on_error: Literal["raise", "quarantine"] = "raise",
    rows_per_file: int = ROWS_PER_FILE,
    base: str | None = None,
    empty: bool = True,
    options: StorageOptions | None = None,
) -> WriteReport:
    """Stream clips into a manifest at `path`: a file if it ends in `.parquet`, else a folder of parts.

    Every row is validated. With `on_error="quarantine"`, rows that break a rule go, whole and with their
    reasons, to `errors/<name>.parquet` beside the manifest; with "raise" the first one stops the writing and
    nothing is left. A manifest already there is replaced when the new one is whole, and left as it is when there is an error, or the
    process ends. Relative video addresses count from the working folder; those under the manifest's folder or beside it are stored
    relative to it (to `base` instead, if given), so that they can be moved or uploaded together. With `empty=False`, a manifest
    without rows is an error.

    Raises ManifestError (a bad row, or a folder that holds foreign Parquet files), StorageError and StoreUnavailable.
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
            return writer.close(empty)
    except BaseException:
        writer.discard()
        raise


class _Writer:
    """Buffers rows, writes the good ones into parts, and the bad ones into the quarantine."""

    def __init__(
        self, path: str, rows_per_file: int, quarantine: bool, options: StorageOptions | None, base: str | None
    ) -> None:
        self.path, self.rows_per_file, self.quarantine = path, rows_per_file, quarantine
        self.files = Replacement(path, options)
        self.base = self.files.home if base is None else absolute(base)
        self.out: ManifestPart | None = None
        self.buffer: list[tuple[Clip, dict[str, Any]]] = []
        self.buffered_bytes = self.rows = self.file_rows = self.seen = self.quarantined = 0
        self.rejected: list[pa.Table] = []
        self.rejected_rows = self.rejected_bytes = 0
        self.keys: dict[int, int] = {}
        self.reason = ""

    def add(self, item: Clip | Rejection) -> None:
        uri, fault, views = item.video_uri, None, list[dict[str, Any]]()
        try:
            uri = uri and storage.absolute(uri)
            if isinstance(item, Clip):
                views = views_to_row(item.views, lambda view: stored_uri(storage.absolute(view), self.base))
        except StorageError as error:
            fault = RowProblem(self.seen + len(self.buffer), item.clip_id, "video_uri", error.value, error.expected)
        if isinstance(item, Rejection):
            row = dict.fromkeys(BASE_SCHEMA.names)
            row |= {"clip_id": item.clip_id, "source": item.source, "video_uri": uri}
            fault = RowProblem(self.seen + len(self.buffer), item.clip_id, "clip", uri, item.reason)
        else:
            row = base_row(item)
            row["video_uri"] = uri and stored_uri(uri, self.base)
            row["views"] = views
        if fault is not None:
            self._flush()
            self._reject(row, [fault])
            self.seen += 1
            return
        assert isinstance(item, Clip)
        self.buffer.append((item, row))
        self.buffered_bytes += sum(value.nbytes for value in row.values() if isinstance(value, np.ndarray))
        self.buffered_bytes += sum(len(signal["values"]) for signal in row["signals"] or ())
        full = len(self.buffer) >= min(FLUSH_ROWS, self.rows_per_file)
        if full or self.buffered_bytes >= FLUSH_BYTES:
            self._flush()

    def close(self, empty: bool = True) -> WriteReport:
        self._flush()
        if not self.rows and not empty:
            found = f"none usable, {self.quarantined} set aside"
            raise ManifestError("clips", found, "at least one usable clip", self.reason)
        self._part(0)  # a manifest without rows is still a manifest
        self._flush_rejected()
        self.files.commit()
        errors = self.files.errors_path if self.quarantined else None
        return WriteReport(self.path, self.rows, self.quarantined, errors, bool(self.files.old))

    def adopt(self, index: pa.Table, rows: bytes, errors: pa.Table | None) -> None:
        """Append a written manifest's index, rows and errors as they are."""
        if len(index):
            self._part(len(index)).append(index, rows)
        if errors is not None and len(errors):
            self._set_aside(errors)

    def discard(self) -> None:
        self.files.discard()

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
            self._part(len(good)).add(rows_to_table(good, SCHEMA))
        self.seen += len(self.buffer)
        self.buffer, self.buffered_bytes = [], 0

    def _reject(self, row: dict[str, Any], problems: list[RowProblem]) -> None:
        if not self.quarantine:
            raise problems[0].error()
        row = row | {"problems": [str(problem) for problem in problems]}
        self._set_aside(rows_to_table([row], ERROR_SCHEMA))
        self.reason = self.reason or f"The first: {problems[0]}."

    def _set_aside(self, rows: pa.Table) -> None:
        self.rejected.append(rows)
        self.quarantined += len(rows)
        self.rejected_rows += len(rows)
        self.rejected_bytes += rows.nbytes
        if self.rejected_rows >= ERROR_ROWS or self.rejected_bytes >= FLUSH_BYTES:
            self._flush_rejected()

    def _flush_rejected(self) -> None:
        """All that waits, as one row group."""
        if self.rejected:
            self.files.errors(ERROR_SCHEMA).write_table(pa.concat_tables(self.rejected).combine_chunks())
            self.rejected, self.rejected_rows, self.rejected_bytes = [], 0, 0

    def _part(self, rows: int) -> ManifestPart:
        """The part that takes the next `rows` rows."""
        if self.out is None:
            self.files.begin()
            self.out = self.files.next_part()
        elif self.file_rows >= self.rows_per_file and rows and not self.files.single:
            self.out.close()
            self.out, self.file_rows = self.files.next_part(), 0
        self.rows += rows
        self.file_rows += rows
        return self.out


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
    rows = storage.read_bytes(rows_file(path, index.schema.metadata), options)
    return index, rows, pq.read_table(errors, filesystem=fs) if found else None


def absolute(path: str | os.PathLike[str]) -> str:
    """A manifest's path, independent of the working folder."""
    return storage.absolute(path)
