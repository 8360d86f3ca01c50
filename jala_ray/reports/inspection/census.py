"""Counts over all rows of a manifest, and the rows to look at closer. Reads the index columns file by file, no row and no video."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jala_ray.data.manifest.rowfile import SUFFIX
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.sampling.catalogue import equals
from jala_ray.types import HAND_NAMES, SPLITS, ManifestError

KEYS = (
    *("source", "domain", "split", "task_type", "left_state", "right_state"),
    *("fps", "time_scale", "length_s", "has_video", "first"),
)
SUMS = ("source_s", "model_s", "chunks", "left_chunks", "right_chunks", "left_labelled", "right_labelled")
LENGTH_BIN_S = 0.5
LONGEST_BIN_S = 10.0
EXAMPLES = 5
Cell = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Census:
    """What the index of a manifest says."""

    cube: pa.Table
    """One row per combination of `KEYS` that occurs, with the number of `rows` and the sums of `SUMS`. `fps` is rounded to 0.01; `length_s`
    is the lower edge of the bin of the clip's seconds of model time; `first` marks the first row of a clip among those of its task types.
    `SIDE_chunks` counts chunks of clips whose hand is labelled, `SIDE_labelled` those of them with all 15 frames."""
    videos: int
    videos_by_source: Mapping[str, int]
    shared_videos: tuple[int, Sequence[str]]
    """How many videos have rows in both splits, with examples."""
    shared_clips: tuple[int, Sequence[str]]
    sheet: Mapping[Cell, Sequence[int]]
    """Drawn rows that have a video, by (source, task type)."""
    moving: Mapping[Cell, Sequence[int]]
    """Drawn clips with a labelled hand, by (source,)."""

    def lines(self, *keys: str, first: bool = True, **where: object) -> list[dict[str, Any]]:
        """The cube summed up to some keys, largest first: `rows` and `SUMS` by name. `first`: each clip once."""
        table = self.cube.filter(pc.field("first")) if first else self.cube
        for name, value in where.items():
            table = table.filter(pc.field(name) == value)
        summed = table.group_by(list(keys)).aggregate([(name, "sum") for name in ("rows", *SUMS)])
        found = summed.rename_columns([name.removesuffix("_sum") for name in summed.column_names]).to_pylist()
        return sorted(found, key=lambda line: (-(line["rows"] or 0), *(str(line[key]) for key in keys)))

    def total(self, *, first: bool = True, **where: object) -> dict[str, Any]:
        """The cube summed up: `rows` and `SUMS` by name, 0 where there is nothing."""
        lines = self.lines(first=first, **where)
        return {name: sum(line[name] or 0 for line in lines) for name in ("rows", *SUMS)}


def take_census(manifest: Manifest, sheet: int, moving: int, seed: int) -> Census:
    """Count all rows; of every cell, draw up to `sheet` rows with a video and `moving` labelled clips, keyed by `seed`.

    Memory holds the clip ids and the video addresses that differ, about 2 GB for 7.5 M clips. Raises ManifestError, StorageError.
    """
    files = range(len(manifest.row_files))
    first, shared_clips = _first_rows(manifest)
    draws = CellDraw(("source", "task_type"), sheet, seed), CellDraw(("source",), moving, seed + 1)
    cubes, videos = [], []
    for file in files:
        begin, end = int(manifest.starts[file]), int(manifest.starts[file + 1])
        table = _enriched(manifest, file, first[begin:end])
        cubes.append(_cube(table))
        videos.append(_distinct(table.select(["video_uri", "source", "split"])))
        has_video = table["has_video"].to_numpy()
        draws[0].add(table, has_video & (table["chunks"].to_numpy() > 0), begin)
        labelled = equals(table["left_state"], "labelled") | equals(table["right_state"], "labelled")
        draws[1].add(table, labelled & first[begin:end], begin)
    every = pa.concat_tables(cubes)
    cube = every.group_by(list(KEYS)).aggregate([(name, "sum") for name in ("rows", *SUMS)])
    cube = cube.rename_columns([name.removesuffix("_sum") for name in cube.column_names])
    seen = _distinct(pa.concat_tables(videos))
    return Census(cube, *_videos(seen), shared_clips, *(draw.rows() for draw in draws))


def _first_rows(manifest: Manifest) -> tuple[np.ndarray, tuple[int, list[str]]]:
    """(R,) bool: the first row of each clip; and how many clips are in both splits, with examples."""
    ids: list[pa.Array] = []
    val: list[np.ndarray] = [np.zeros(0, bool)]
    for file in range(len(manifest.row_files)):
        table = _columns(manifest, file, ["clip_id", "split"])
        ids += table["clip_id"].chunks
        val.append(equals(table["split"], "val"))
    encoded = pa.chunked_array(ids, pa.string()).dictionary_encode()
    codes = np.concatenate([np.zeros(0, np.int32), *(chunk.indices.to_numpy() for chunk in encoded.chunks)])
    # Codes are given in the order of appearance: a clip is new where its code is higher than all before it.
    first = np.diff(np.maximum.accumulate(codes), prepend=-1) > 0
    in_val = np.concatenate(val)
    both = np.zeros((2, int(first.sum())), bool)
    both[0, codes[~in_val]] = both[1, codes[in_val]] = True
    shared = np.flatnonzero(both.all(0))
    words = encoded.chunk(0).dictionary if len(shared) else pa.array([], pa.string())
    return first, (len(shared), words.take(pa.array(shared[:EXAMPLES])).to_pylist())


def _columns(manifest: Manifest, file: int, names: Sequence[str]) -> pa.Table:
    """Some columns of one file. Raises ManifestError where a value is missing or a number is none, which no writer leaves."""
    table = manifest.file_columns(file, names)
    for name in names:
        column = table[name]
        bad = 0 if name == "video_uri" else column.null_count
        if pa.types.is_floating(column.type):
            bad += int((~np.isfinite(column.to_numpy())).sum())
            bad += int((column.to_numpy() <= 0).sum()) if name == "time_scale" else 0
        if bad:
            field = f"{manifest.row_files[file].removesuffix(SUFFIX)}.parquet: column {name}"
            remedy = "See `jala validate`, and write the manifest again."
            raise ManifestError(field, f"{bad} rows without one", "a value in every row", remedy)
    return table


def _enriched(manifest: Manifest, file: int, first: np.ndarray) -> pa.Table:
    """The index of one file with the columns that the cube counts."""
    names = [*KEYS[:6], "clip_id", "video_uri", "start_s", "end_s", "fps", "time_scale", "n_chunks"]
    table = _columns(manifest, file, [*names, *(f"{side}_labelled" for side in HAND_NAMES)])
    chunks = table["n_chunks"].to_numpy().astype(np.int64)
    source_s = table["end_s"].to_numpy() - table["start_s"].to_numpy()
    model_s = source_s / table["time_scale"].to_numpy()
    bins = np.floor(model_s / LENGTH_BIN_S + 1e-6) * LENGTH_BIN_S
    columns: dict[str, Any] = {name: table[name] for name in (*KEYS[:6], "video_uri")}
    columns |= {
        "fps": np.round(table["fps"].to_numpy(), 2),
        "time_scale": table["time_scale"],
        "length_s": np.clip(bins, 0, LONGEST_BIN_S),
        "has_video": table["video_uri"].is_valid().combine_chunks(),
        "first": first,
        "rows": np.ones(len(table), np.int64),
        "source_s": source_s,
        "model_s": model_s,
        "chunks": chunks,
    }
    for side in HAND_NAMES:
        columns[f"{side}_chunks"] = np.where(equals(table[f"{side}_state"], "labelled"), chunks, 0)
        columns[f"{side}_labelled"] = _count_true(table[f"{side}_labelled"])
    return pa.table(columns)


def _count_true(lists: pa.ChunkedArray) -> np.ndarray:
    """(R,) int64: true values in each row of a list<bool> column."""
    column = lists.combine_chunks()
    values = pc.fill_null(column.flatten(), False).to_numpy(zero_copy_only=False)
    return np.bincount(column.value_parent_indices().to_numpy()[values], minlength=len(column)).astype(np.int64)


def _cube(table: pa.Table) -> pa.Table:
    summed = table.group_by(list(KEYS)).aggregate([(name, "sum") for name in ("rows", *SUMS)])
    summed = summed.rename_columns([name.removesuffix("_sum") for name in summed.column_names])
    return _plain(summed)


def _distinct(table: pa.Table) -> pa.Table:
    """The rows that differ, of those that have a video."""
    table = table.filter(table["video_uri"].is_valid())
    return _plain(table.group_by(table.column_names).aggregate([]))


def _plain(table: pa.Table) -> pa.Table:
    """Words as strings again, so that tables of several files can be joined."""
    kinds = [
        (n, pa.string() if pa.types.is_dictionary(t) else t)
        for n, t in zip(table.column_names, table.schema.types, strict=True)
    ]
    return table.cast(pa.schema(kinds))


def _videos(seen: pa.Table) -> tuple[int, dict[str, int], tuple[int, list[str]]]:
    """Of distinct (video, source, split): videos, videos of each source, and those in both splits with examples."""
    by_video = seen.group_by("video_uri").aggregate([("split", "count_distinct")])
    shared = by_video.filter(pc.field("split_count_distinct") == len(SPLITS))["video_uri"]
    by_source = seen.group_by("source").aggregate([("video_uri", "count_distinct")]).to_pylist()
    counts = {line["source"]: line["video_uri_count_distinct"] for line in by_source}
    return len(by_video), counts, (len(shared), sorted(shared.to_pylist())[:EXAMPLES])


class CellDraw:
    """Up to `size` rows of every cell, all alike likely, in one pass over the files of a manifest."""

    def __init__(self, names: Sequence[str], size: int, seed: int) -> None:
        self.names, self.size, self.rng = tuple(names), size, np.random.default_rng(seed)
        self.kept: dict[Cell, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, table: pa.Table, keep: np.ndarray, begin: int) -> None:
        """The next rows, of which those in mask `keep` (n,) may be drawn; `begin` is the number of the first."""
        lots = self.rng.random(len(table))  # a lot for every row: the lowest of a cell are drawn
        codes, cells = _cells(table, self.names)
        full = {cell: best[-1] for cell, (best, _) in self.kept.items() if len(best) == self.size}
        limit = np.array([full.get(cell, 1.0) for cell in cells] or [1.0])
        rows = np.flatnonzero(keep & (lots < limit[codes]))
        rows = rows[np.lexsort((lots[rows], codes[rows]))]
        used, starts = np.unique(codes[rows], return_index=True)
        for code, group in zip(used, np.split(rows, starts[1:]), strict=False):  # no code, yet one empty group
            mine = group[: self.size]
            old = self.kept.get(cells[code], (np.zeros(0), np.zeros(0, np.int64)))
            both = np.concatenate([old[0], lots[mine]]), np.concatenate([old[1], mine + begin])
            best = np.argsort(both[0])[: self.size]
            self.kept[cells[code]] = both[0][best], both[1][best]

    def rows(self) -> dict[Cell, list[int]]:
        """The drawn rows by cell, in the order of their lots."""
        return {cell: rows.tolist() for cell, (_, rows) in sorted(self.kept.items())}


def _cells(table: pa.Table, names: Sequence[str]) -> tuple[np.ndarray, list[Cell]]:
    """(n,) place of every row's cell in the list of all cells; the columns are dictionary-encoded."""
    codes, cells = np.zeros(len(table), np.int64), [()]
    for name in names:
        words = table[name].unify_dictionaries().combine_chunks()
        known = words.dictionary.to_pylist()
        codes = codes * len(known) + words.indices.to_numpy()
        cells = [(*cell, word) for cell in cells for word in known]
    return codes, cells


def in_turns(cells: Mapping[Cell, Sequence[int]]) -> list[int]:
    """The rows of all cells, taking turns: first one of every cell, then a second one of each, and so on.

    Within a turn the cells' first words take turns too, so that every source comes before a source comes twice.
    """
    seen: Counter[str] = Counter()
    order = []
    for cell in sorted(cells):
        order.append((seen[cell[0]], cell))
        seen[cell[0]] += 1
    lists = [cells[cell] for _, cell in sorted(order)]
    return [row for turn in zip_longest(*lists) for row in turn if row is not None]
