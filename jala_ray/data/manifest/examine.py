"""What a stored manifest vouches for, looked at: every row by the rules, against the Parquet file, and its videos."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise, repeat
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from jala_ray import storage
from jala_ray.data.manifest import rowfile
from jala_ray.data.manifest.places import RowAddress
from jala_ray.data.manifest.rows import INDEX_COLUMNS, packet_stream, video_address
from jala_ray.data.manifest.signal_census import SignalCensus
from jala_ray.data.manifest.validation import RowProblem, validate_table
from jala_ray.storage import StorageOptions
from jala_ray.types import CHUNK_SECONDS, JalaError, UserError, VideoError
from jala_ray.video.decode import VideoReader

if TYPE_CHECKING:
    from jala_ray.data.manifest.table import Manifest

Videos = Literal["all", "some", "none"]
SOME_VIDEOS = 100
"""Distinct videos that are opened where some are."""
THREADS = 8
AT_ONCE = 1024
"""Videos that are given to them at once."""
NO_VIDEO, UNKNOWN = -1, -1
"""In place of the number of a row's video, and of a video's size."""
COMPARED_FILES, COMPARED_ROWS = 4, 8
"""Files whose rows a run compares with what their Parquet file says, and rows of each."""
PLACE_COLUMNS = ("row_offset", "row_size", "row_crc")
LONG_TEXT = 1000
"""Characters. A longer text may leave too few of a sequence's tokens for the motion."""
_APART = "The two files were changed apart: write the manifest again."
_MOVED = "Videos and manifest may have been moved apart: bring them together again, or convert again where they are."


@dataclass
class Examined:
    """What was found of a manifest."""

    rows: int
    videos: int
    """Distinct ones."""
    problems: list[RowProblem] = field(default_factory=list)
    """By row."""
    opened: int = 0
    """Videos that were opened, or found not to open."""
    notes: list[str] = field(default_factory=list)
    """What is no problem of a row, and should be known before a run."""
    signals: SignalCensus = field(default_factory=SignalCensus)


class _Use(NamedTuple):
    """A row's claim on a video."""

    row: int
    clip_id: str
    last_s: float
    """Presentation time of its last boundary frame."""
    size: int | None
    """Bytes of the video when its packets were indexed."""


def examine(manifest: Manifest, videos: Videos = "some", seed: int = 0) -> Examined:
    """Every problem of a manifest: rows that break a rule, cannot be read, come twice or say otherwise than the Parquet file; and of all,
    `some` (drawn by `seed`) or none of the videos, those that are missing, do not open, end before their rows do, or are not the file
    that was indexed. Each distinct video is opened once.

    Raises StorageError, StoreUnavailable (a store that does not answer is no row's problem), ManifestError.
    """
    index = manifest.index
    distinct, numbers = _numbered(index["video_uri"])
    chosen = _chosen(distinct, videos, seed)
    found = Examined(len(manifest), len(distinct))
    claims = _Claims()
    seen: dict[int, int] = {}
    texts = _Texts()
    for batch in manifest.batches():
        sound = [(i, row) for i, row in batch if not isinstance(row, JalaError)]
        claimed = index.slice(batch[0][0], len(batch))
        ids = claimed["clip_id"].to_pylist()
        for i, error in batch:
            if isinstance(error, JalaError):
                clip = ids[i - batch[0][0]]
                found.problems.append(RowProblem(i, clip, error.field, error.value, error.expected, error.remedy))
        if not sound:
            continue
        rows, table = [i for i, _ in sound], pa.concat_tables([row for _, row in sound])
        broken = [replace(problem, row=rows[problem.row]) for problem in validate_table(table, seen=seen)]
        claimed = claimed.take(pa.array([i - batch[0][0] for i in rows], pa.int64()))
        found.problems += [*broken, *_contradictions(rows, claimed, table)]
        texts.count(table)
        found.signals.count(table)
        unfit = {problem.row for problem in broken}
        if chosen.any():
            videos_of = np.where(chosen[numbers[rows]], numbers[rows], NO_VIDEO)
            found.problems += claims.add(rows, videos_of, claimed, table, unfit, manifest.base)
    found.notes += texts.notes()
    uses = claims.by_video(index["clip_id"])
    with ThreadPoolExecutor(THREADS) as pool:
        while some := list(islice(uses, AT_ONCE)):
            addresses = [video_address({"video_uri": distinct[number].as_py()}, manifest.base) for number, _ in some]
            found.opened += len(some)
            for problems in pool.map(_video_problems, addresses, [use for _, use in some], repeat(manifest.options)):
                found.problems += problems
    found.problems.sort(key=lambda problem: problem.row)
    return found


def refuse_contradictions(manifest: Manifest, seed: int = 0) -> None:
    """Compare a few rows, drawn by `seed`, with what the Parquet files say of them, as a run does that is planned by those.

    Raises ManifestError where they differ: the Parquet file was changed without its rows. A row that cannot be read is not looked at.
    """
    rng = np.random.default_rng(seed)
    held = np.flatnonzero(np.diff(manifest.starts))
    for file in sorted(rng.choice(held, min(COMPARED_FILES, len(held)), replace=False).tolist()):
        first, last = int(manifest.starts[file]), int(manifest.starts[file + 1])
        rows = sorted(rng.choice(np.arange(first, last), min(COMPARED_ROWS, last - first), replace=False).tolist())
        claimed = manifest.file_columns(file, [*INDEX_COLUMNS, *PLACE_COLUMNS])
        for row in rows:
            if any(claimed[name][row - first].as_py() is None for name in claimed.column_names):
                continue  # left out of every plan
            offset, size, crc = (claimed[name][row - first].as_py() for name in PLACE_COLUMNS)
            try:
                payload = rowfile.fetch(RowAddress(manifest.row_files[file], offset, size, crc), manifest.options)
                stored = rowfile.unpack(payload)
            except UserError:
                continue  # set aside when it is read, with its reason
            for problem in _contradictions([row], claimed.slice(row - first, 1), stored):
                raise problem.error()


def _numbered(uris: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The distinct videos, and which of them each row has: (R,) int32, `NO_VIDEO` for none."""
    encoded = uris.dictionary_encode().unify_dictionaries()
    if not encoded.num_chunks:
        return pa.array([], uris.type), np.zeros(0, np.int32)
    numbers = [chunk.indices.fill_null(NO_VIDEO).to_numpy() for chunk in encoded.chunks]
    return encoded.chunk(0).dictionary, np.concatenate(numbers)


def _chosen(distinct: pa.Array, videos: Videos, seed: int) -> np.ndarray:
    """Which of the distinct videos are opened, the same ones whatever else the manifest holds: (V + 1,) bool; the last is no video."""
    chosen = np.zeros(len(distinct) + 1, bool)
    if videos == "some" and len(distinct) > SOME_VIDEOS:
        key = seed.to_bytes(8, "little")
        uris = distinct.to_pylist()
        lot = lambda i: hashlib.blake2b(uris[i].encode(errors="surrogateescape"), digest_size=8, key=key).digest()  # noqa: E731
        chosen[sorted(range(len(uris)), key=lot)[:SOME_VIDEOS]] = True
    else:
        chosen[:-1] = videos != "none"
    return chosen


def _contradictions(rows: Sequence[int], claimed: pa.Table, table: pa.Table) -> Iterator[RowProblem]:
    """Where the Parquet file (`claimed`), which runs are planned by, says otherwise than the rows, which they train on."""
    for name in INDEX_COLUMNS:
        outside, inside = claimed[name].cast(table[name].type), table[name]
        if outside.equals(inside):
            continue
        ids = claimed["clip_id"].to_pylist()
        for row, clip, says, is_there in zip(rows, ids, outside.to_pylist(), inside.to_pylist(), strict=True):
            if says != is_there and (says == says or is_there == is_there):  # NaN in both is the rules' business
                yield RowProblem(row, clip, f"{name} of the row", is_there, f"{says!r}, as in the Parquet file", _APART)


class _Claims:
    """Rows' claims on videos, by columns: a manifest may have millions."""

    def __init__(self) -> None:
        self.row, self.video, self.size = array("q"), array("q"), array("q")
        self.last_s = array("d")

    def add(
        self, rows: Sequence[int], videos: np.ndarray, claimed: pa.Table, table: pa.Table, unfit: set[int], base: str
    ) -> Iterator[RowProblem]:
        """Claims of some rows on `videos` (their numbers, `NO_VIDEO` for none). A packet index that says nothing is a problem, and told."""
        names = ["clip_id", "video_uri", "start_s", "n_chunks", "time_scale", "packet_stream"]
        outside = claimed["video_uri"].to_pylist()
        for row, video, uri, facts in zip(rows, videos.tolist(), outside, table.select(names).to_pylist(), strict=True):
            if video == NO_VIDEO or uri != facts["video_uri"] or None in facts.values():
                continue
            try:
                video_address(facts, base)
                size = packet_stream(facts["packet_stream"])["file_size"] if facts["packet_stream"] else UNKNOWN
            except UserError as error:
                yield RowProblem(row, facts["clip_id"], error.field, error.value, error.expected, error.remedy)
                continue
            if row not in unfit:
                self.row.append(row)
                self.video.append(video)
                self.size.append(size)
                self.last_s.append(facts["start_s"] + facts["n_chunks"] * CHUNK_SECONDS * facts["time_scale"])

    def by_video(self, clip_ids: pa.ChunkedArray) -> Iterator[tuple[int, list[_Use]]]:
        """The claims on each video, by its number."""
        row, video, size, last_s = map(np.asarray, (self.row, self.video, self.size, self.last_s))
        order = np.argsort(video, kind="stable")
        ends = np.flatnonzero(np.diff(video[order], append=NO_VIDEO)) + 1
        for begin, end in pairwise([0, *ends.tolist()]):
            mine = order[begin:end]
            facts = zip(row[mine].tolist(), last_s[mine].tolist(), size[mine].tolist(), strict=True)
            uses = [_Use(i, clip_ids[i].as_py(), last, None if of == UNKNOWN else of) for i, last, of in facts]
            yield int(video[mine[0]]), uses


def _video_problems(address: str | None, uses: list[_Use], options: StorageOptions | None) -> list[RowProblem]:
    """What is wrong with a video for the rows that show it."""
    assert address is not None
    try:
        size = storage.size(address, options)
        problems = [
            RowProblem(
                *(use.row, use.clip_id, "video_uri", address),
                f"the video of {use.size} bytes that was indexed, not one of {size}",
                "It was replaced: convert again.",
            )
            for use in uses
            if use.size not in (None, size)
        ]
        same = sorted((use for use in uses if use.size in (None, size)), key=lambda use: use.last_s)
        if same:
            with VideoReader(address, options=options) as reader:
                problems += _short(reader, same, address)
    except storage.MissingFile:
        return [RowProblem(use.row, use.clip_id, "video_uri", address, "a video that is there", _MOVED) for use in uses]
    except UserError as error:
        expected = f"a video that can be read: {error}"
        return [RowProblem(use.row, use.clip_id, "video_uri", address, expected) for use in uses]
    return problems


def _short(reader: VideoReader, uses: list[_Use], address: str) -> Iterator[RowProblem]:
    """Of rows in the order of their last frames, those whose last frame the video does not have."""
    first_bad, last_good = len(uses), -1
    reason: VideoError | None = None
    while last_good + 1 < first_bad:  # the last row first, as it is mostly good; then by halves
        i = first_bad - 1 if reason is None else (last_good + first_bad) // 2
        try:
            reader.each([uses[i].last_s], lambda picture: None)
            last_good = i
        except VideoError as error:
            first_bad, reason = i, error
    for use in uses[first_bad:]:
        expected = f"a video with a frame at {use.last_s:.3f} s, where the clip's last chunk ends: {reason}"
        yield RowProblem(use.row, use.clip_id, "video_uri", address, expected, "Was it replaced? Convert again.")


@dataclass
class _Texts:
    """Counts texts that are long."""

    rows: int = 0
    longest: int = 0

    def count(self, table: pa.Table) -> None:
        columns = (table[name].to_pylist() for name in ("task_type", "instructions", "description"))
        for task, instructions, description in zip(*columns, strict=True):
            longest = longest_text(task, instructions or (), description or "")
            self.rows += longest > LONG_TEXT
            self.longest = max(self.longest, longest)

    def notes(self) -> Iterator[str]:
        if self.rows:
            yield (
                f"{self.rows} rows have a text of more than {LONG_TEXT:,} characters, the longest of {self.longest:,}. "
                "A run sets a row aside whose text, picture and motion come to more tokens than its data.max_tokens."
            )


def longest_text(task: str, instructions: Sequence[str], description: str) -> int:
    """Characters of the longest text that a sample of a row may have."""
    return max((len(text or "") for text in (*instructions, description if task == "description" else "")), default=0)
