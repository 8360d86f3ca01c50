"""The files of a manifest, and how a new set of them takes the place of an old one.

A reader sees the old manifest until the new one is whole, however the writer ends. A folder's new parts are written beside the old
ones, under other names; meanwhile `writing.json` says which parts are the manifest, and writing that file anew is the moment of change.
A single file is replaced by one that names its own file of rows. What a killed writer leaves is swept by the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from jala_ray import storage
from jala_ray.data.manifest import rowfile
from jala_ray.data.manifest.rows import INDEX_SCHEMA, with_empty
from jala_ray.storage import StorageOptions
from jala_ray.types import JalaError, ManifestError

WRITING = "writing.json"
"""In a folder whose manifest is being written: the parts that are in force, and who writes."""
ROWS_KEY = b"jala_ray.manifest.rows"
"""In a Parquet file's metadata: the file of its rows, where that has another name."""


def rows_file(parquet: str, metadata: dict[bytes, bytes] | None = None) -> str:
    """The file that holds the rows of a manifest's Parquet file with this key-value metadata."""
    named = (metadata or {}).get(ROWS_KEY)
    if named is None:
        return parquet.removesuffix(".parquet") + rowfile.SUFFIX
    return f"{parquet.rpartition('/')[0]}/{named.decode(errors='replace')}"


def page_file(path: str) -> str:
    """Where the inspection page of a manifest lies: in a folder, beside a single file."""
    single = path.removesuffix(".parquet")
    return storage.join(path, "inspect.html") if single == path else f"{single}.inspect.html"


def parquet_files(fs: pafs.FileSystem, root: str) -> list[str]:
    """The Parquet files that lie directly in a folder, in order."""
    return [file for file in _listed(fs, root) if file.endswith(".parquet")]


def files_in_force(fs: pafs.FileSystem, root: str, shown: str, options: StorageOptions | None = None) -> list[str]:
    """Those of them that are the folder's manifest; none where there is none. `shown` is the folder's address.

    Raises ManifestError where `writing.json` is damaged.
    """
    found = _listed(fs, root)
    if f"{root}/{WRITING}" not in found:
        return [file for file in found if file.endswith(".parquet")]
    place = storage.join(shown, WRITING)
    try:
        text = storage.read_bytes(place, options)
    except storage.MissingFile:  # done in the meantime
        return files_in_force(fs, root, shown, options)
    try:
        return [f"{root}/{name}" for name in sorted(json.loads(text)["parts"])]
    except (ValueError, KeyError, TypeError) as error:
        remedy = "Delete it; the folder's Parquet files then are the manifest, half-written ones too."
        raise ManifestError(place, text[:200], '{"parts": [names of Parquet files]}', remedy) from error


def _listed(fs: pafs.FileSystem, folder: str) -> list[str]:
    infos = fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    return sorted(info.path for info in infos if info.is_file)


class ManifestPart:
    """One Parquet file of a manifest and its rows. The Parquet file comes last: rows without one are no manifest."""

    def __init__(self, file: str, fs: pafs.FileSystem, rows: str = "") -> None:
        self.file, self.fs, self.end = file, fs, 0
        self.rows_file = rows or rows_file(file)
        self.rows = fs.open_output_stream(self.rows_file, compression=None)
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
        table = with_empty(table, ("signal_names",))  # version 2 has none
        self.index.append(table.select(INDEX_SCHEMA.names).replace_schema_metadata(INDEX_SCHEMA.metadata))
        self.rows.write(rows)
        self.end += len(rows)

    def close(self) -> None:
        """Write the Parquet file. A file appears whole, and both survive a power cut."""
        self.rows.close()
        _sync(self.fs, self.rows_file)
        index = pa.concat_tables(self.index) if self.index else INDEX_SCHEMA.empty_table()
        if self.rows_file != rows_file(self.file):
            named = {ROWS_KEY: self.rows_file.rpartition("/")[2].encode()}
            index = index.replace_schema_metadata((index.schema.metadata or {}) | named)
        with _whole(self.fs, self.file) as place:
            pq.write_table(index, place, filesystem=self.fs, compression="zstd")


class Replacement:
    """The files of a manifest that is being written, and of the one that it replaces, if there is one.

    `begin` comes before the first file, then `commit` or `discard`. Nothing is touched before `begin`.
    """

    def __init__(self, path: str, options: StorageOptions | None) -> None:
        self.path, self.options = path, options
        self.single = path.endswith(".parquet")
        self.fs, self.root = storage.filesystem(path, options)
        self.folder = self.root.rpartition("/")[0] if self.single else self.root
        self.home = path.rpartition("/")[0] if self.single else path
        self.name = self.root.rpartition("/")[2].removesuffix(".parquet") if self.single else "rows"
        self.errors_path = storage.join(self.home, "errors", f"{self.name}.parquet")
        self.old = self._found()
        if not self.single:
            foreign = [file for file in self.old if not file.rpartition("/")[2].startswith("part-")]
            if foreign:
                expected = "an empty folder or an earlier manifest"
                raise ManifestError("manifest path", path, expected, f"It holds {foreign[0]}.")
        self.parts: list[ManifestPart] = []
        self.made: list[str] = []
        self._token = "" if self.single else uuid.uuid4().hex
        self._begun = self._done = False
        self._errors: tuple[IO[bytes], pq.ParquetWriter] | None = None

    def _found(self) -> list[str]:
        """The manifest that is there now."""
        if self.single:
            return [self.root] if self._is_file(self.root) else []
        return files_in_force(self.fs, self.root, self.path, self.options)

    def begin(self) -> None:
        """Raises ManifestError where another writer was here since this one was made: its manifest stays."""
        if (found := self._found()) != self.old:
            raise self._another_writer((found or self.old)[0], "as it was when this process began")
        self._begun = True
        self.old_rows = [rows_file(file, _metadata(self.fs, file)) for file in self.old]
        self._make_folder(self.folder)
        self._sweep()
        numbers = [int(found[1]) for found in (re.search(r"/part-(\d+)\.parquet$", file) for file in self.old) if found]
        self._number = max(numbers, default=-1) + 1
        if not self.single:
            self._in_force(self.old)

    def next_part(self) -> ManifestPart:
        """The part that comes next, all before it being closed."""
        if self.single:
            rows = rows_file(self.root)
            if rows in self.old_rows:
                rows = rows.removesuffix(rowfile.SUFFIX) + f".{uuid.uuid4().hex[:8]}{rowfile.SUFFIX}"
            part = ManifestPart(self.root, self.fs, rows)
        else:
            file = f"{self.folder}/part-{self._number:05d}.parquet"
            self._number += 1
            part = ManifestPart(file, self.fs)
        self.parts.append(part)
        return part

    def errors(self, schema: pa.Schema) -> pq.ParquetWriter:
        """The table of rows that are set aside; gathered on this machine's disk until the manifest is whole."""
        if self._errors is None:
            file = tempfile.TemporaryFile()  # noqa: SIM115 closed by commit or discard
            self._errors = file, pq.ParquetWriter(pa.PythonFile(file, "w"), schema, compression="zstd")
        return self._errors[1]

    def commit(self) -> None:
        """Put the new manifest in place of the old one. Raises ManifestError where another writer was here at the same time."""
        last = self.parts[-1]
        last.rows.close()
        self._refuse_another_writer()
        self._put_errors()  # before the rows: a manifest that is there has its errors beside it
        last.close()
        if not self.single:
            self._in_force([part.file for part in self.parts])
        self._done = True
        self._remove([file for file in self.old if file != self.root] + self.old_rows)
        if self._errors is None:
            self._remove([self._error_file])
        if self.old and not storage.is_s3(self.path):
            storage.delete(page_file(self.path), self.options)  # it shows the old one
        if not self.single:
            storage.delete(storage.join(self.path, WRITING), self.options)
        self._close_errors()

    def discard(self) -> None:
        """Leave what was there before, as far as the store allows; the error that led here is the one to report."""
        self._close_errors()
        if not self._begun or self._done:
            return
        with contextlib.suppress(OSError, JalaError):
            for part in self.parts:
                part.rows.close()
            if not self._is_ours():
                return
            for part in self.parts:
                self._remove([part.rows_file] if part.file in self.old else [part.file, part.rows_file])
            if not self.single:
                storage.delete(storage.join(self.path, WRITING), self.options)
            for folder in reversed(self.made):
                if not self.fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True)):
                    self.fs.delete_dir(folder)

    def _refuse_another_writer(self) -> None:
        sizes = [(part.rows_file, part.end, self.fs.get_file_info(part.rows_file).size) for part in self.parts]
        changed = [file for file, wrote, size in sizes if size != wrote]
        if changed or not self._is_ours():
            raise self._another_writer((changed or [WRITING])[0], "as this process wrote it")

    def _another_writer(self, file: str, expected: str) -> ManifestError:
        remedy = "Another process writes this manifest at the same time. Run the command again, alone."
        return ManifestError("manifest path", self.path, f"{file} {expected}", remedy)

    def _is_ours(self) -> bool:
        """Whether no other writer has begun in this folder since this one did, and swept its files."""
        if self.single:
            return True
        try:
            return (
                json.loads(storage.read_bytes(storage.join(self.path, WRITING), self.options))["writer"] == self._token
            )
        except storage.MissingFile:
            return False

    @property
    def _error_file(self) -> str:
        return f"{self.folder}/errors/{self.name}.parquet"

    def _put_errors(self) -> None:
        if self._errors is None:
            return
        file, writer = self._errors
        writer.close()
        file.seek(0)
        self._make_folder(self._error_file.rpartition("/")[0])
        with _whole(self.fs, self._error_file) as place, self.fs.open_output_stream(place, compression=None) as out:
            shutil.copyfileobj(file, out)

    def _close_errors(self) -> None:
        if self._errors is not None:
            file, writer = self._errors
            writer.close()
            file.close()

    def _in_force(self, files: list[str]) -> None:
        facts = {"parts": [file.rpartition("/")[2] for file in files], "writer": self._token}
        storage.write_bytes(storage.join(self.path, WRITING), json.dumps(facts).encode(), self.options)

    def _sweep(self) -> None:
        """Remove what an earlier writer left that was killed."""
        if self.single and not self.old:
            return  # it can only have left the rows, which are written anew; many single files may lie here
        names = set(_listed(self.fs, self.folder))
        errors = _listed(self.fs, self._error_file.rpartition("/")[0])
        kept = {*self.old, *self.old_rows}
        partial = re.compile(rf"\.({re.escape(self.name)}\.parquet|part-.*\.parquet|{WRITING})\.[0-9a-f]{{8}}\.part")
        own = re.compile(
            rf"{re.escape(self.name)}(\.[0-9a-f]{{8}})?\.rows" if self.single else r"part-.*\.(parquet|rows)"
        )
        for file in sorted(names.union(errors)):
            name, sibling = file.rpartition("/")[2], file.removesuffix(rowfile.SUFFIX) + ".parquet"
            of_another = self.single and sibling != self.root and sibling in names
            if partial.fullmatch(name) or (file in names - kept and own.fullmatch(name) and not of_another):
                self.fs.delete_file(file)

    def _make_folder(self, folder: str) -> None:
        missing = []
        if storage.is_s3(self.path):
            return  # There are none to be made.
        while folder and self.fs.get_file_info(folder).type == pafs.FileType.NotFound:
            missing.append(folder)
            folder = folder.rpartition("/")[0]
        if missing:
            self.fs.create_dir(missing[0], recursive=True)
            self.made += reversed(missing)

    def _remove(self, files: list[str]) -> None:
        for file in files:
            if self._is_file(file):
                self.fs.delete_file(file)

    def _is_file(self, file: str) -> bool:
        return self.fs.get_file_info(file).type == pafs.FileType.File


@contextlib.contextmanager
def _whole(fs: pafs.FileSystem, file: str) -> Iterator[str]:
    """Where to write a file so that nobody sees half of it, after a power cut neither. An object is there when it is whole; a file must
    be renamed.
    """
    if not isinstance(fs, pafs.LocalFileSystem):
        yield file
        return
    folder, _, name = file.rpartition("/")
    partial = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.part"
    try:
        yield partial
        _sync(fs, partial)
        os.replace(partial, file)
        _sync(fs, folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def _sync(fs: pafs.FileSystem, path: str) -> None:
    """Have a file's bytes, or a folder's names, on the disk."""
    if isinstance(fs, pafs.LocalFileSystem):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _metadata(fs: pafs.FileSystem, file: str) -> dict[bytes, bytes] | None:
    """Key-value metadata of a Parquet file; None where it is damaged, so that it can be replaced."""
    try:
        return pq.read_metadata(file, filesystem=fs).metadata
    except pa.ArrowException:
        return None
