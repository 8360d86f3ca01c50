"""Writing a manifest: rows are validated as they stream by; bad ones are set aside, with the reason."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from jala_ray import storage
from jala_ray.data.rows import BASE_SCHEMA, SCHEMA, base_row, derived_row, rows_to_table
from jala_ray.data.validation import RowProblem, validate_table
from jala_ray.storage import StorageOptions
from jala_ray.storage.stores import explained
from jala_ray.types import Clip, ManifestError, UserError

ROW_GROUP_ROWS = 128
ROW_GROUP_BYTES = 2 << 20
"""A row group closes at 128 rows or 2 MiB of poses, whichever comes first: what reading one clip costs."""
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
    options: StorageOptions | None = None,
) -> WriteReport:
    """Stream clips into a manifest at `path`: a file if it ends in `.parquet`, else a folder of parts.

    Every row is validated. With `on_error="quarantine"`, rows that break a rule go, whole and with their
    reasons, to `errors/<name>.parquet` beside the manifest; with "raise" the first one stops the writing and
    nothing is left. A manifest already there is replaced. Video addresses under the manifest's folder are
    stored relative to it, so that the folder can be moved or uploaded.

    Raises ManifestError (a bad row, or a folder that holds foreign Parquet files) and StorageError.
    """
    if on_error not in ("raise", "quarantine"):
        raise ManifestError("on_error", on_error, "'raise' or 'quarantine'")
    place = absolute(path)
    with explained("write manifest", place, options):
        writer = _Writer(place, rows_per_file, on_error == "quarantine", options)
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
    """Buffers rows into row groups, row groups into files, and bad rows into the quarantine."""

    def __init__(self, path: str, rows_per_file: int, quarantine: bool, options: StorageOptions | None) -> None:
        self.path, self.rows_per_file, self.quarantine = path, rows_per_file, quarantine
        self.single = path.endswith(".parquet")
        self.fs, root = storage.filesystem(path, options)
        self.folder = root.rpartition("/")[0] if self.single else root
        self.base = path.rpartition("/")[0] if self.single else path
        name = root.rpartition("/")[2].removesuffix(".parquet") if self.single else "rows"
        self.error_file = f"{self.folder}/errors/{name}.parquet"
        self.errors_path = storage.join(self.base, "errors", f"{name}.parquet")
        self.root = root
        self.files: list[str] = []
        self.out: pq.ParquetWriter | None = None
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
        full = len(self.buffer) >= min(ROW_GROUP_ROWS, self.rows_per_file)
        if full or self.buffered_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> WriteReport:
        self._flush()
        if self.out is None:
            self.out = self._next_file()  # a manifest without rows is still a manifest
        for out in (self.out, self.error_out):
            if out is not None:
                out.close()
        errors = self.errors_path if self.quarantined else None
        return WriteReport(self.path, self.rows, self.quarantined, errors)

    def discard(self) -> None:
        """Leave nothing, as far as the store allows; the error that led here is the one to report."""
        with contextlib.suppress(OSError):
            for out in (self.out, self.error_out):
                if out is not None:
                    out.close()
            for file in self.files:
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
            self.out.write_table(rows_to_table(good, SCHEMA))
            self.rows += len(good)
            self.file_rows += len(good)
        self.seen += len(self.buffer)
        self.buffer, self.buffered_bytes = [], 0

    def _reject(self, row: dict[str, Any], problems: list[RowProblem]) -> None:
        if not self.quarantine:
            raise problems[0].error()
        if self.error_out is None:
            self.fs.create_dir(self.error_file.rpartition("/")[0], recursive=True)
            self.error_out = self._open(self.error_file, ERROR_SCHEMA)
        row = row | {"problems": [str(problem) for problem in problems]}
        self.error_out.write_table(rows_to_table([row], ERROR_SCHEMA))
        self.quarantined += 1

    def _next_file(self) -> pq.ParquetWriter:
        if self.out is not None:
            self.out.close()
        file = self.root if self.single else f"{self.folder}/part-{self.parts:05d}.parquet"
        self.file_rows, self.parts = 0, self.parts + 1
        return self._open(file, SCHEMA)

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
        for file in [*old, self.error_file]:
            if self.fs.get_file_info(file).type == pafs.FileType.File:
                self.fs.delete_file(file)


def parquet_files(fs: pafs.FileSystem, root: str) -> list[str]:
    """The Parquet files that lie directly in a folder, in order."""
    infos = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    return sorted(info.path for info in infos if info.is_file and info.path.endswith(".parquet"))


def _relative(uri: str | None, base: str) -> str | None:
    return uri.removeprefix(f"{base}/") if uri is not None else None


def absolute(path: str | os.PathLike[str]) -> str:
    """A manifest's path, independent of the working folder."""
    text = os.fspath(path)
    return text.rstrip("/") if "://" in text else os.path.abspath(text)
