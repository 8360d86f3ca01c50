"""Rows of episodes from Parquet files: the columns that are needed, of the row groups that hold them, kept within a bound of bytes."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jala_ray import storage
from jala_ray.data.robots.columns import Column, joined, numbers
from jala_ray.data.robots.recent import Recent
from jala_ray.data.robots.sets import RobotSet
from jala_ray.storage import StorageOptions
from jala_ray.storage.stores import explained
from jala_ray.types import ManifestError, Signal, UserError

KEPT_BYTES = 512 * 2**20
"""Of decoded columns, of one process."""
KEPT_FOOTERS = 4096
TIME = "timestamp"
NUMBER = "episode_index"


@dataclass(frozen=True, eq=False)
class EpisodeRows:
    """All rows of one episode."""

    time_s: np.ndarray
    """(T,) float64 seconds after its beginning, as recorded."""
    task: np.ndarray | None
    """(T,) int64 number of each row's task, -1 where it has none; None: rows say nothing of it."""
    columns: Mapping[str, Column]

    def signal(self, of: RobotSet, name: str) -> Signal:
        """A column or a named part of one. Raises `ConfigError` for what is neither."""
        part, column = of.part(name), self.columns[of.column(name)]
        chosen = column if part is None else column.dimensions(part.start, part.end)
        return Signal(chosen.values, self.time_s, chosen.valid)


class RowReader:
    """Reads episodes of any of a run's sets; threads may share it. `wanted` are names of signals, None: all that a set has."""

    def __init__(self, wanted: Sequence[str] | None, kept_bytes: int = KEPT_BYTES) -> None:
        self.wanted, self.groups = wanted, Recent(kept_bytes)
        self.footers = Recent(KEPT_FOOTERS)

    def episode(self, of: RobotSet, place: int) -> EpisodeRows:
        """By its place in the set's `episodes`. Raises `ManifestError` that names file and episode, `StorageError`, `ConfigError`."""
        found = self._columns(of, place)
        time = found[TIME].values.reshape(-1).astype(np.float64)
        if not np.isfinite(time).all() or (np.diff(time) <= 0).any():
            bad = int(np.flatnonzero(~np.isfinite(time) | (np.diff(time, prepend=-np.inf) <= 0))[0])
            raise ManifestError(f"{_told(of, place)}: {TIME}", float(time[bad]), f"ascending seconds, in its row {bad}")
        task = found.get(self._task(of))
        numbered = None if task is None else np.where(task.usable, task.values.reshape(-1), -1).astype(np.int64)
        return EpisodeRows(time, numbered, {name: found[name] for name in self.columns(of)})

    def columns(self, of: RobotSet) -> tuple[str, ...]:
        """Of signals, each once."""
        names = of.info.signals if self.wanted is None else [of.column(name) for name in self.wanted]
        return tuple(dict.fromkeys(names))

    def _task(self, of: RobotSet) -> str:
        return of.modality.instruction or "task_index"

    def _columns(self, of: RobotSet, place: int) -> dict[str, Column]:
        uri, length = of.data_file(place), int(of.episodes.length[place])
        footer = self._footer(uri, of.options)
        needed = (TIME, *self.columns(of))
        told = [name for name in (NUMBER, self._task(of)) if name in footer.names]
        if lacking := next((name for name in needed if name not in footer.names), None):
            raise ManifestError(f"{uri}: column {lacking}", "absent", "a column that info.json declares")
        wanted = tuple(dict.fromkeys((*needed, *told)))
        begin, many = int(of.episodes.offset[place]), of.info.concatenated
        there = begin + length <= footer.rows if many else length == footer.rows
        found = self._rows(uri, of.options, begin, begin + length, wanted) if there else None
        if found is None or (many and not _is_of(found, int(of.episodes.number[place]))):
            begin = self._sought(of, place, footer.rows)
            found = self._rows(uri, of.options, begin, begin + length, wanted)
        return found

    def _sought(self, of: RobotSet, place: int, rows: int) -> int:
        """First row of an episode that does not lie where `meta/` says, as sets that were merged or cut may have it."""
        uri, length, number = of.data_file(place), int(of.episodes.length[place]), int(of.episodes.number[place])
        mine = np.zeros(0, np.int64)
        if rows and NUMBER in self._footer(uri, of.options).names:
            every = self._rows(uri, of.options, 0, rows, (NUMBER,))[NUMBER].values.reshape(-1)
            mine = np.flatnonzero(every == number)
        if len(mine) != length or mine[-1] - mine[0] != length - 1:
            remedy = "The file was cut off, or meta/ is of another version of the data set."
            shown = f"{len(mine)} of {rows} rows together"
            raise ManifestError(_told(of, place), shown, f"{length} rows, one after another", remedy)
        return int(mine[0])

    def _rows(
        self, uri: str, options: StorageOptions | None, first: int, last: int, names: tuple[str, ...]
    ) -> dict[str, Column]:
        """Rows `first` .. `last` - 1 of a file."""
        ends = self._footer(uri, options).ends
        low, high = np.searchsorted(ends, first, side="right") - 1, np.searchsorted(ends, last, side="left")
        parts = []
        for group in range(int(low), int(high)):
            begin = int(ends[group])
            held = self.groups.get((uri, group, names), lambda g=group: self._group(uri, options, g, names), _bytes)
            parts.append({name: held[name].part(max(0, first - begin), last - begin) for name in names})
        return {name: joined([part[name] for part in parts]) for name in names}

    def _group(self, uri: str, options: StorageOptions | None, group: int, names: tuple[str, ...]) -> dict[str, Column]:
        metadata = self._footer(uri, options).metadata
        with _reading(uri, options) as (fs, path):
            file = pq.ParquetFile(path, filesystem=fs, metadata=metadata)
            table = file.read_row_group(group, columns=list(names), use_threads=False)
        return {name: numbers(table[name], f"{uri}: {name}") for name in names}

    def largest_group(self, of: RobotSet, place: int) -> int:
        """Rows of the largest row group of an episode's file. Raises as `episode`."""
        return int(np.diff(self._footer(of.data_file(place), of.options).ends).max(initial=0))

    def _footer(self, uri: str, options: StorageOptions | None) -> Footer:
        return self.footers.get(uri, lambda: read_footer(uri, options), lambda _: 1)


@dataclass(frozen=True, eq=False)
class Footer:
    """What a Parquet file says of itself."""

    metadata: pq.FileMetaData
    ends: np.ndarray
    """(G + 1,) first row of every row group, and the number of rows."""
    names: tuple[str, ...]
    """Of its columns."""

    @property
    def rows(self) -> int:
        return int(self.ends[-1])


def read_footer(uri: str, options: StorageOptions | None = None) -> Footer:
    """Raises `ManifestError` where the file is absent or damaged."""
    with _reading(uri, options) as (fs, path):
        metadata = pq.read_metadata(path, filesystem=fs)
        names = tuple(metadata.schema.to_arrow_schema().names)
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    return Footer(metadata, np.cumsum([0, *counts], dtype=np.int64), names)


def _bytes(columns: dict[str, Column]) -> int:
    return sum(column.nbytes for column in columns.values())


def _is_of(found: Mapping[str, Column], number: int) -> bool:
    return NUMBER not in found or bool((found[NUMBER].values == number).all())


def _told(of: RobotSet, place: int) -> str:
    return f"episode {of.episodes.number[place]} of {of.name}, {of.data_file(place)}"


@contextlib.contextmanager
def _reading(uri: str, options: StorageOptions | None) -> Iterator[tuple[Any, str]]:
    """A file system and a path in it; what goes wrong is explained by the file's address."""
    try:
        with explained("read", uri, options):
            yield storage.filesystem(uri, options)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ManifestError(uri, str(error), "a whole Parquet file", "It is damaged.") from error


AHEAD = 16
"""Threads that read episodes where many are gone through: a store answers many requests as fast as one."""


def readable(of: RobotSet, chosen: np.ndarray, reader: RowReader) -> Iterator[tuple[int, EpisodeRows]]:
    """Some episodes (m,) with their places, in the order of the files, without those whose rows can't be read: training says why."""
    order = np.lexsort((of.episodes.offset[chosen], of.episodes.file[chosen], of.episodes.chunk[chosen]))
    coming: deque[tuple[int, Future[EpisodeRows]]] = deque()
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="rows") as pool:
        for place in [*chosen[order].tolist(), *[None] * AHEAD]:
            if place is not None:
                coming.append((place, pool.submit(reader.episode, of, place)))
            if coming and (place is None or len(coming) > AHEAD):
                first, read = coming.popleft()
                with contextlib.suppress(UserError):
                    yield first, read.result()
