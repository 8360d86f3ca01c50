"""The episodes of a LeRobot data set and the words of its tasks, as arrays: a data set may have a hundred thousand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jala_ray import storage
from jala_ray.data.robots.info import RobotInfo
from jala_ray.storage import StorageOptions
from jala_ray.storage.stores import explained
from jala_ray.types import ManifestError

NOWHERE = -1
"""File number of what an episode has not."""


@dataclass(frozen=True, eq=False)
class Footage:
    """Where one camera's pictures of every episode lie."""

    chunk: np.ndarray
    """(E,) int32."""
    file: np.ndarray
    """(E,) int32; `NOWHERE` where an episode has no pictures of it."""
    from_s: np.ndarray
    """(E,) float64 presentation time at which the episode begins in that file, seconds."""


@dataclass(frozen=True, eq=False)
class Episodes:
    """Ascending by `number`."""

    number: np.ndarray
    """(E,) int64: LeRobot's episode_index."""
    length: np.ndarray
    """(E,) int64 rows."""
    chunk: np.ndarray
    """(E,) int32: of its Parquet file."""
    file: np.ndarray
    """(E,) int32."""
    offset: np.ndarray
    """(E,) int64: its first row in that file, as far as the data set says."""
    footage: Mapping[str, Footage]
    """By camera."""

    def __len__(self) -> int:
        return len(self.number)


# --- tasks -----------------------------------------------------------------------------------------------------------


def read_tasks(base: str, info: RobotInfo, options: StorageOptions | None = None) -> dict[int, str]:
    """task_index -> words. Raises `ManifestError`."""
    if info.concatenated:
        return _tasks_of(read_table(storage.join(base, "meta/tasks.parquet"), options), base)
    uri, found = storage.join(base, "meta/tasks.jsonl"), dict[int, str]()
    for line, entry in _lines(uri, options):
        if not isinstance(entry.get("task_index"), int) or not isinstance(entry.get("task"), str):
            raise ManifestError(f"{uri}, line {line}", entry, "a task_index and a task")
        found[entry["task_index"]] = entry["task"]
    return found


def _tasks_of(table: pa.Table, base: str) -> dict[int, str]:
    """The words are the index of a pandas frame, whose name may be absent: they are the column that holds text."""
    uri = storage.join(base, "meta/tasks.parquet")
    text = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    if "task_index" not in table.column_names or not text:
        raise ManifestError(uri, table.column_names, "a column task_index and a column, or index, of text")
    words = table["task" if "task" in text else text[0]].to_pylist()
    return {int(number): str(word or "") for number, word in zip(table["task_index"].to_pylist(), words, strict=True)}


# --- episodes --------------------------------------------------------------------------------------------------------


def read_episodes(base: str, info: RobotInfo, options: StorageOptions | None = None) -> Episodes:
    """Raises `ManifestError` for a list that is absent, damaged or empty, or names an episode twice."""
    found = _from_parquet(base, info, options) if info.concatenated else _from_lines(base, info, options)
    order = np.argsort(found.number, kind="stable")
    number = found.number[order]
    twice = np.flatnonzero(np.diff(number) == 0)
    if not len(number) or len(twice) or found.length.min() < 1:
        shown = f"episode {number[twice[0]]} twice" if len(twice) else f"{len(number)} episodes, one without rows"
        raise ManifestError(f"{base}: episodes", shown, "at least one episode, each once, each with rows")
    footage = {
        name: Footage(one.chunk[order], one.file[order], one.from_s[order]) for name, one in found.footage.items()
    }
    length, chunk, file, offset = (values[order] for values in (found.length, found.chunk, found.file, found.offset))
    return Episodes(number, length, chunk, file, offset, footage)


def _from_lines(base: str, info: RobotInfo, options: StorageOptions | None) -> Episodes:
    """A file of its own for every episode and camera."""
    uri, numbers, lengths = storage.join(base, "meta/episodes.jsonl"), list[int](), list[int]()
    for line, entry in _lines(uri, options):
        if not isinstance(entry.get("episode_index"), int) or not isinstance(entry.get("length"), int):
            raise ManifestError(f"{uri}, line {line}", entry, "an episode_index and a length")
        numbers.append(entry["episode_index"])
        lengths.append(entry["length"])
    number = np.array(numbers, np.int64)
    chunk, file = (number // info.chunk_size).astype(np.int32), number.astype(np.int32)
    footage = {name: Footage(chunk, file, np.zeros(len(number))) for name in info.cameras}
    return Episodes(number, np.array(lengths, np.int64), chunk, file, np.zeros(len(number), np.int64), footage)


def _from_parquet(base: str, info: RobotInfo, options: StorageOptions | None) -> Episodes:
    """Many episodes a file; where each begins is told."""
    folder = storage.join(base, "meta/episodes")
    names = sorted(name for name in storage.list_files(folder, options) if name.endswith(".parquet"))
    if not names:
        raise ManifestError(folder, "no .parquet file", "the list of episodes")
    kept = ("episode_index", "length", "dataset_from_index", "data/", "videos/")
    table = pa.concat_tables(
        (read_table(storage.join(folder, name), options, kept) for name in names), promote_options="permissive"
    )
    number, length, begin = (
        _integers(table, name, folder, np.int64) for name in ("episode_index", "length", "dataset_from_index")
    )
    chunk, file = (_integers(table, f"data/{name}_index", folder) for name in ("chunk", "file"))
    return Episodes(number, length, chunk, file, _offsets(chunk, file, begin), _footage(table, info, folder))


def _offsets(chunk: np.ndarray, file: np.ndarray, begin: np.ndarray) -> np.ndarray:
    """(E,) first row in the episode's file, from its first row in the data set."""
    _, which = np.unique(chunk.astype(np.int64) << 32 | file.astype(np.int64), return_inverse=True)
    least = np.full(int(which.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, which, begin)
    return begin - least[which]


def _footage(table: pa.Table, info: RobotInfo, folder: str) -> dict[str, Footage]:
    found = {}
    for name in info.cameras:
        if f"videos/{name}/file_index" in table.column_names:
            chunk, file = (
                _integers(table, f"videos/{name}/{part}_index", folder, fill=NOWHERE) for part in ("chunk", "file")
            )
            begins = _column(table, f"videos/{name}/from_timestamp", folder)
            found[name] = Footage(chunk, file, pc.fill_null(begins, 0.0).to_numpy().astype(np.float64))
    return found


def _column(table: pa.Table, name: str, folder: str) -> pa.ChunkedArray:
    if name not in table.column_names or not _numeric(table.schema.field(name).type):
        raise ManifestError(f"{folder}: {name}", "no numbers", "a column of numbers in the list of episodes")
    return table[name]


def _numeric(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _integers(
    table: pa.Table, name: str, folder: str, dtype: type[np.integer] = np.int32, fill: int | None = None
) -> np.ndarray:
    column = _column(table, name, folder)
    if column.null_count and fill is None:
        raise ManifestError(f"{folder}: {name}", f"{column.null_count} nulls", "a number for every episode")
    values = pc.fill_null(column, fill or 0).to_numpy()
    if not np.isfinite(values).all():
        values = np.where(np.isfinite(values), values, NOWHERE)
    return values.astype(dtype)


# --- files -----------------------------------------------------------------------------------------------------------


def read_table(uri: str, options: StorageOptions | None = None, kept: Sequence[str] = ()) -> pa.Table:
    """A Parquet file of `meta/`; with `kept`, the columns whose names begin so. Raises `ManifestError`, `StorageError`."""
    fs, path = storage.filesystem(uri, options)
    try:
        with explained("read", uri, options):
            file = pq.ParquetFile(path, filesystem=fs)
            names = [name for name in file.schema_arrow.names if not kept or name.startswith(tuple(kept))]
            return file.read(columns=names)
    except storage.MissingFile as error:
        raise ManifestError(uri, "no such file", "a file of a LeRobot data set of v3.0") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ManifestError(uri, str(error), "a whole Parquet file", "It is damaged.") from error


def _lines(uri: str, options: StorageOptions | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of every line of JSON that is not empty."""
    try:
        text = storage.read_bytes(uri, options).decode()
    except storage.MissingFile as error:
        raise ManifestError(uri, "no such file", "a file of a LeRobot data set before v3.0") from error
    except UnicodeDecodeError as error:
        raise ManifestError(uri, str(error), "text in UTF-8", "It is damaged.") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ManifestError(f"{uri}, line {number}", str(error), "a line of JSON", "It is damaged.") from error
            if not isinstance(entry, dict):
                raise ManifestError(f"{uri}, line {number}", entry, "an object")
            yield number, entry
