"""The manifest's rules, checked a table at a time. A problem names row, field, value and expectation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jala_ray.data.manifest.signals import Found, signal_faults, view_faults
from jala_ray.domains import DOMAIN_KINDS
from jala_ray.tasks import TASKS, TaskKind
from jala_ray.types import (
    CHUNK_SECONDS,
    HAND_NAMES,
    MAX_CLIP_SECONDS,
    SPLITS,
    HandState,
    ManifestError,
)

STATES = tuple(state.name.lower() for state in HandState)
MAX_ROTATION = 2 * np.pi + 1e-3
"""rad. An axis-angle longer than a full turn is a unit mistake (degrees) or garbage."""
MAX_WRIST_DISTANCE = 20.0
"""m from the first camera. Hands farther away come from millimetres taken for metres."""
MAX_FPS = 1000.0
DURATION_SLACK = 1.5
"""Frames by which poses may lie outside the span, and a clip exceed its maximum: time stamps are rounded."""
WIDTHS = {"valid": 1, "theta": 45, "rot": 3, "wrist": 3}
"""Values a pose frame takes in each of a hand's list columns."""
CORRECT = 'Correct the row, or write with on_error="quarantine" to set such rows aside.'
RENAME = "Give each source a name of its own (`convert ... --source NAME`), which is part of its ids: set aside, its clips are lost."


@dataclass(frozen=True)
class RowProblem:
    """One broken rule of one manifest row."""

    row: int
    clip_id: str
    field: str
    value: object
    expected: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"row {self.row} (clip {self.clip_id}): {self.field} is {self.value!r}, expected {self.expected}"
        return f"{text}. {self.remedy}" if self.remedy else text

    def error(self) -> ManifestError:
        return ManifestError(
            f"row {self.row} (clip {self.clip_id}), {self.field}",
            self.value,
            self.expected,
            self.remedy or CORRECT,
        )


def validate_table(table: pa.Table, first_row: int = 0, seen: dict[int, int] | None = None) -> list[RowProblem]:
    """Check all rows of a table in the manifest's schema (derived columns are checked where present).

    `first_row`: number of the table's first row, for the messages. `seen`: 64-bit hash of each key of
    earlier tables -> that of its span; extended in place, so that duplicates are found across a stream of tables.
    """
    check = _Check(table, first_row)
    check.no_nulls()
    check.enums()
    check.times()
    check.text()
    check.cameras()
    check.pose_times()
    for side in HAND_NAMES:
        check.hand(side)
    check.hands_together()
    check.beside()
    if "n_chunks" in table.column_names:
        check.derived()
    check.duplicates({} if seen is None else seen)
    return sorted(check.problems, key=lambda problem: problem.row)


class _Lists:
    """A list column taken apart: lengths (R,), flat values, and the row of every value."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        self.lengths = pc.fill_null(array.value_lengths(), 0).to_numpy(zero_copy_only=False)
        values = array.flatten()
        if pa.types.is_boolean(values.type):
            values = pc.fill_null(values, False)
        self.values = values.to_numpy(zero_copy_only=False)
        self.row_of = np.repeat(np.arange(len(self.lengths)), self.lengths)

    def frames(self, rows: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Values of the rows in mask `rows` as (F, width), and each frame's row. Their lengths must fit."""
        keep = rows[self.row_of]
        return self.values[keep].reshape(-1, width), self.row_of[keep][::width]


class _Check:
    def __init__(self, table: pa.Table, first_row: int) -> None:
        self.table, self.first_row = table, first_row
        self.ids = [str(value) for value in table["clip_id"].to_pylist()]
        self.problems: list[RowProblem] = []

    def report(self, bad: np.ndarray, field: str, value: Callable[[int], object], expected: str) -> None:
        """A problem for each True of `bad` (R,); `value(row)` shows what was found."""
        for i in np.flatnonzero(bad):
            row = int(i)
            self.problems.append(RowProblem(row + self.first_row, self.ids[row], field, value(row), expected))

    def values(self, name: str) -> list:
        return self.table[name].to_pylist()

    @cached_property
    def signals(self) -> list:
        """The cells of that column: megabytes, where there are any."""
        return self.values("signals")

    def numbers(self, name: str) -> np.ndarray:
        """A numeric column as float64; null reads NaN."""
        return self.table[name].cast(pa.float64()).to_numpy()

    def number_rule(self, name: str, good: np.ndarray, expected: str) -> None:
        """Report non-null values of a numeric column where `good` is False (any comparison with NaN)."""
        numbers = self.numbers(name)
        present = self.table[name].is_valid().to_numpy()
        self.report(present & ~good, name, lambda i: float(numbers[i]), expected)

    def no_nulls(self) -> None:
        nullable = {"video_uri"} | {name for name in self.table.column_names if name.startswith("camera_")}
        for name in self.table.column_names:
            if name not in nullable and self.table[name].null_count:
                self.report(self.table[name].is_null().to_numpy(), name, lambda _: None, "a value")
        self.report(np.array([not text.strip() for text in self.ids]), "clip_id", lambda _: "", "a name")

    def enums(self) -> None:
        allowed: dict[str, Collection[str]] = {"domain": DOMAIN_KINDS, "split": SPLITS, "task_type": TASKS}
        for name, choices in (allowed | {f"{side}_state": STATES for side in HAND_NAMES}).items():
            values = self.values(name)
            bad = np.array([value is not None and value not in choices for value in values], bool)
            self.report(bad, name, values.__getitem__, f"one of {', '.join(choices)}")

    def times(self) -> None:
        start, end, fps, scale = (self.numbers(n) for n in ("start_s", "end_s", "fps", "time_scale"))
        self.number_rule("start_s", np.isfinite(start) & (start >= 0), "seconds >= 0")
        self.number_rule("end_s", np.isfinite(end) & ~(end <= start), "seconds, later than start_s")
        self.number_rule("fps", (fps > 0) & (fps <= MAX_FPS), f"frames per second in (0, {MAX_FPS:g}]")
        self.number_rule("time_scale", (scale > 0) & np.isfinite(scale), "source seconds per model second, > 0")
        with np.errstate(divide="ignore", invalid="ignore"):
            seconds = (end - start) / scale
            slack = DURATION_SLACK / fps / scale
        self.seconds = np.where((end > start) & (scale > 0) & (fps > 0), seconds, np.nan)
        short, long = self.seconds + 1e-6 < CHUNK_SECONDS, self.seconds > MAX_CLIP_SECONDS + slack
        shown = lambda i: f"{self.seconds[i]:.3f} s of model time"  # noqa: E731
        self.report(short, "end_s", shown, f"at least one chunk (N >= 1, {CHUNK_SECONDS:g} s of model time)")
        self.report(long, "end_s", shown, f"a clip of at most {MAX_CLIP_SECONDS:g} s of model time")
        self.chunks = np.floor(np.nan_to_num(self.seconds) / CHUNK_SECONDS + 1e-6).astype(int)
        tasks = self.values("task_type")
        for name, kind in TASKS.items():
            mine = np.array([task == name for task in tasks], bool)
            self.report(
                mine & (self.chunks >= 1) & (self.chunks < kind.least_chunks),
                "task_type",
                lambda i, name=name: f"{name} of {self.chunks[i]} chunk",
                f"N >= {kind.least_chunks} chunks for {name}",
            )

    def task_flags(self, of: Callable[[TaskKind], bool]) -> np.ndarray:
        """(R,) bool: what `of` says of each row's task type; False for an unknown one."""
        known = {name: of(kind) for name, kind in TASKS.items()}
        return np.array([known.get(task, False) for task in self.values("task_type")], bool)

    def text(self) -> None:
        instructions = self.values("instructions")
        descriptions = self.values("description")
        needs, answers = self.task_flags(lambda kind: kind.instructed), self.task_flags(lambda kind: kind.answers)
        empty = np.array([not texts for texts in instructions], bool)
        blank = np.array([any(not (t or "").strip() for t in texts or ()) for texts in instructions], bool)
        self.report(needs & empty, "instructions", instructions.__getitem__, "at least one instruction")
        self.report(blank, "instructions", instructions.__getitem__, "no blank instruction")
        mute = np.array([not (text or "").strip() for text in descriptions], bool)
        self.report(mute & answers, "description", descriptions.__getitem__, "text, as the task answers in words")

    def cameras(self) -> None:
        names = [f"camera_{name}" for name in ("fx", "fy", "cx", "cy", "width", "height")]
        valid = np.stack([self.table[name].is_valid().to_numpy() for name in names])
        filled = valid.sum(axis=0)
        partial = (filled > 0) & (filled < len(names))
        missing = lambda i: "null " + ", ".join(n for n, v in zip(names, valid[:, i], strict=True) if not v)  # noqa: E731
        self.report(partial, "camera", missing, "all six camera columns or none")
        for name in names:
            numbers = self.numbers(name)
            good = np.isfinite(numbers)
            if not name.startswith("camera_c"):
                good &= numbers > 0
            else:
                size = self.numbers("camera_width" if name == "camera_cx" else "camera_height")
                good &= ~((numbers < -size) | (numbers > 2 * size))
            expected = "pixels within or near the image" if name.startswith("camera_c") else "pixels > 0"
            self.number_rule(name, good, expected)

    def pose_times(self) -> None:
        times = _Lists(self.table["pose_time_s"])
        self.frames = times.lengths
        self.finite("pose_time_s", times)
        falling = np.flatnonzero((np.diff(times.values) <= 0) & (np.diff(times.row_of) == 0))
        self.first_of(falling, times.row_of, "pose_time_s", times.values[1:], "ascending seconds")
        span = self.numbers("end_s") - self.numbers("start_s")
        slack = DURATION_SLACK / self.numbers("fps")
        row = times.row_of
        outside = np.flatnonzero((times.values < -slack[row]) | (times.values > (span + slack)[row]))
        expected = "seconds from the clip's start, between 0 and its duration"
        self.first_of(outside, row, "pose_time_s", times.values, expected)
        poses = _Lists(self.table["extrinsics"])
        bad = (poses.lengths != 0) & (poses.lengths != 12 * self.frames)
        self.report(
            bad,
            "extrinsics",
            lambda i: f"{poses.lengths[i]} values for {self.frames[i]} pose frames",
            "none, or 12 (3 x 4) a pose frame",
        )
        self.finite("extrinsics", poses)
        matrices, row = poses.frames(~bad, 12)
        rotation = matrices.reshape(-1, 3, 4)[:, :, :3]
        with np.errstate(invalid="ignore"):
            product = rotation @ rotation.transpose(0, 2, 1)
        skew = np.abs(product - np.eye(3, dtype=np.float32)).max((1, 2), initial=0)
        self.first_of(np.flatnonzero(skew > 1e-3), row, "extrinsics", skew, "rotations (R R^T = 1)")

    def hand(self, side: str) -> None:
        state = np.array(self.values(f"{side}_state"), object)
        labelled = state == "labelled"
        lists = {name: _Lists(self.table[f"{side}_{name}"]) for name in [*WIDTHS, "beta"]}
        confidence = self.numbers(f"{side}_confidence")
        self.number_rule(f"{side}_confidence", (confidence >= 0) & (confidence <= 1), "a number in [0, 1]")
        fits = labelled.copy()
        for name, width in WIDTHS.items():
            lengths = lists[name].lengths
            bad = labelled & (lengths != width * self.frames)
            shown = lambda i, found=lengths: f"{found[i]} values for {self.frames[i]} pose frames"  # noqa: E731
            self.report(bad, f"{side}_{name}", shown, f"{width} a pose frame")
            fits &= ~bad
            shown = lambda i, found=lengths: f"{found[i]} values, state {state[i]}"  # noqa: E731
            self.report(~labelled & (lengths > 0), f"{side}_{name}", shown, "no poses unless labelled")
        beta = lists["beta"].lengths
        self.report(labelled & (beta != 10), f"{side}_beta", lambda i: f"{beta[i]} values", "10 values")
        has_valid = np.zeros(len(state), bool)
        has_valid[lists["valid"].row_of[lists["valid"].values.astype(bool)]] = True
        self.report(
            fits & ~has_valid,
            f"{side}_state",
            lambda i: f"labelled, none of {self.frames[i]} pose frames valid",
            "a labelled hand to have valid poses (else untracked)",
        )
        for name in ("theta", "rot", "wrist", "beta"):
            self.finite(f"{side}_{name}", lists[name])
        for name, limit, unit in (
            ("theta", MAX_ROTATION, "rad"),
            ("rot", MAX_ROTATION, "rad"),
            ("wrist", MAX_WRIST_DISTANCE, "m"),
        ):
            vectors, row = lists[name].frames(fits, 3)
            size = np.linalg.norm(vectors, axis=1)
            large = np.flatnonzero(np.isfinite(size) & (size > limit))
            self.first_of(large, row, f"{side}_{name}", size, f"a length of at most {limit:.3g} {unit}")

    def hands_together(self) -> None:
        states = [np.array(self.values(f"{side}_state"), object) for side in HAND_NAMES]
        absent = (states[0] == "absent") & (states[1] == "absent")
        handless = absent & self.task_flags(lambda kind: kind.hands)
        self.report(handless, "left_state, right_state", lambda _: "absent", "at least one hand in the clip")
        signals = np.array([bool(cell) for cell in self.signals], bool)
        no_video = self.table["video_uri"].is_null().to_numpy()
        unlabelled = (states[0] != "labelled") & (states[1] != "labelled")
        self.report(
            no_video & unlabelled & ~signals, "video_uri", lambda _: None, "a video, a labelled hand or a signal"
        )

    def beside(self) -> None:
        """Signals and side views."""
        span, fps = self.numbers("end_s") - self.numbers("start_s"), self.numbers("fps")
        for row, cell in enumerate(self.signals):
            if cell:
                slack = DURATION_SLACK / fps[row] if fps[row] > 0 else np.inf
                self.found(row, signal_faults(cell, (span[row], slack) if np.isfinite(span[row]) else None))
        for row, cell in enumerate(self.values("views")):
            if cell:
                self.found(row, view_faults(cell))

    def found(self, row: int, faults: Iterable[Found]) -> None:
        for field, value, expected in faults:
            self.problems.append(RowProblem(row + self.first_row, self.ids[row], field, value, expected))

    def derived(self) -> None:
        found = self.values("n_chunks")
        wrong = np.array([n is not None for n in found], bool) & (self.numbers("n_chunks") != self.chunks)
        self.report(
            wrong & np.isfinite(self.seconds),
            "n_chunks",
            found.__getitem__,
            "floor of the clip's seconds of model time",
        )
        for side in HAND_NAMES:
            lists = _Lists(self.table[f"{side}_labelled"])
            lengths = lists.lengths
            shown = lambda i, found=lengths: f"{found[i]} values"  # noqa: E731
            self.report(lengths != self.numbers("n_chunks"), f"{side}_labelled", shown, "one value a chunk")
            unlabelled = np.array(self.values(f"{side}_state"), object) != "labelled"
            wrong = np.flatnonzero(lists.values.astype(bool) & unlabelled[lists.row_of])
            expected = "false, as the hand is not labelled"
            self.first_of(wrong, lists.row_of, f"{side}_labelled", lists.values, expected)
        names = self.values("signal_names")
        held = [sorted(str(entry["name"]) for entry in cell or ()) for cell in self.signals]
        other = np.array([said != own for said, own in zip(names, held, strict=True)], bool)
        self.report(other, "signal_names", names.__getitem__, "the names of the row's signals, sorted")

    def duplicates(self, seen: dict[int, int]) -> None:
        """A key that comes twice: the same row again, or, where the video or the span is another, unlike clips of one name."""
        columns = [self.values(name) for name in ("task_type", "video_uri", "start_s", "end_s")]
        for row, (clip_id, task, *span) in enumerate(zip(self.ids, *columns, strict=True)):
            key, what = _hash(f"{clip_id}\n{task}"), _hash(repr(span))
            if key not in seen:
                seen[key] = what
                continue
            place = (row + self.first_row, clip_id)
            if seen[key] == what:
                found = RowProblem(*place, "task_type (duplicate)", task, "one row per (clip_id, task_type)")
            else:
                expected = "an id of its own: another clip has it, of another video or span"
                found = RowProblem(*place, "clip_id", "{}, {} to {} s".format(*span), expected, RENAME)
            self.problems.append(found)

    def finite(self, name: str, lists: _Lists) -> None:
        bad = np.flatnonzero(~np.isfinite(lists.values))
        expected = "finite numbers (frames without a pose: valid = false, values 0)"
        self.first_of(bad, lists.row_of, name, lists.values, expected)

    def first_of(self, bad: np.ndarray, row_of: np.ndarray, name: str, values: np.ndarray, expected: str) -> None:
        """Report the first bad value of each row; `bad` holds positions in `values`."""
        rows, first = np.unique(row_of[bad], return_index=True)
        where = dict(zip(rows.tolist(), bad[first].tolist(), strict=True))
        flags = np.zeros(len(self.ids), bool)
        flags[rows] = True
        self.report(flags, name, lambda i: values[where[i]].item(), expected)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
