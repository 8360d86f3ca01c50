"""Read a run folder, resumes included.

Lineage rule. `metrics.jsonl` is only ever appended to. A run that stops at step 18 and resumes from a
checkpoint of step 10 writes steps 11, 12, ... a second time, so the file holds both histories. A new attempt
begins where the `attempt` key changes or, in files without that key, where the step goes down. From its first
step on, an attempt replaces everything written before it: each step's last occurrence survives, and steps
that were rolled back and never reached again are gone. Rows of one step within one attempt (training,
monitors, validation) are merged into one. A writer that moves rolled-back rows to `metrics.cut.jsonl` leaves
nothing to replace; that file then only tells what each attempt lost.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from jala_ray.rows import load_row
from jala_ray.types import UserError

Row = dict[str, object]
ATTEMPT_KEY = "attempt"


@dataclass(frozen=True)
class Attempt:
    """One start of the run, as its rows tell."""

    name: str
    first_step: int
    last_step: int
    seconds: float | None
    """Wall-clock between the attempt's first and last row, None where the rows carry no `time_s`."""
    discarded: int = 0
    """Steps of this attempt that a later one replaced."""


@dataclass(frozen=True)
class RunFolder:
    path: Path
    config: dict | None
    environment: dict | None
    metrics: list[Row]
    """The surviving rows, one per step, ascending."""
    attempts: list[Attempt]
    errors: list[Row]
    checkpoints: list[str]
    teacher: dict | None = None
    """What the fit of the run's teacher said of itself; None without one."""
    torn: list[str] = field(default_factory=list)
    """Lines that are no JSON object (a process killed while it wrote), as "file:line"."""


def read_metrics(run_dir: str | Path) -> list[Row]:
    """Surviving metric rows, one per step, ascending (lineage rule above).

    Raises UserError if the folder has no `metrics.jsonl` or a row in it lacks an integer `step`.
    """
    path = Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        raise UserError("run_dir", str(run_dir), "a run folder with metrics.jsonl", "Was the run started there?")
    rows, _ = _read_jsonl(path)
    return lineage(rows, path)[0]


def read_run(run_dir: str | Path) -> RunFolder:
    """Everything a run folder holds; a run that has not logged yet gives an empty list of metrics.

    Raises UserError if `run_dir` is no folder, or if one of its JSON files is damaged.
    """
    root = Path(run_dir)
    if not root.is_dir():
        raise UserError("run_dir", str(run_dir), "an existing run folder", "Give the folder that holds config.json.")
    metrics_path = root / "metrics.jsonl"
    rows, torn_metrics = _read_jsonl(metrics_path)
    errors, torn_errors = _read_jsonl(root / "errors.jsonl")
    metrics, attempts = lineage(rows, metrics_path)
    cut, _ = _read_jsonl(root / "metrics.cut.jsonl")
    saved = root / "checkpoints"
    return RunFolder(
        path=root,
        config=read_json(root / "config.json"),
        environment=read_json(root / "environment.json"),
        metrics=metrics,
        attempts=with_cut(attempts, cut),
        errors=errors,
        checkpoints=sorted(p.name for p in saved.iterdir() if p.is_dir()) if saved.is_dir() else [],
        teacher=(read_json(root / "assets" / "teacher.json") or {}).get("report"),
        torn=[*torn_metrics, *torn_errors],
    )


def lineage(rows: list[Row], origin: Path | str = "metrics.jsonl") -> tuple[list[Row], list[Attempt]]:
    """(surviving rows merged by step, attempts in order) of rows in the order they were written."""
    groups: list[list[Row]] = []
    for number, row in enumerate(rows, 1):
        step = row.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            raise UserError("step", step, "an integer in every row", f"Row {number} of {origin} has none.")
        if not groups or _starts_attempt(groups[-1][-1], row):
            groups.append([])
        groups[-1].append(row)

    survivors: dict[int, Row] = {}
    owner: dict[int, int] = {}
    attempts: list[Attempt] = []
    for index, group in enumerate(groups):
        steps = [_step(row) for row in group]
        first = min(steps)
        replaced = [step for step in survivors if step >= first]
        for step in replaced:
            del survivors[step]
            earlier = attempts[owner[step]]
            attempts[owner[step]] = replace(earlier, discarded=earlier.discarded + 1)
        for step, row in zip(steps, group, strict=True):
            merged = survivors.setdefault(step, {})
            merged.update({key: value for key, value in row.items() if value is not None or key not in merged})
            owner[step] = index
        times = [t for row in group if isinstance(t := row.get("time_s"), (int, float))]
        name = group[0].get(ATTEMPT_KEY)
        attempts.append(
            Attempt(
                name=str(index + 1 if name is None else name),
                first_step=first,
                last_step=max(steps),
                seconds=max(times) - min(times) if times else None,
            )
        )
    return [survivors[step] for step in sorted(survivors)], attempts


def with_cut(attempts: list[Attempt], cut: list[Row]) -> list[Attempt]:
    """The attempts with the rolled-back steps that were moved out of `metrics.jsonl` counted as replaced."""
    lost: dict[str, set[int]] = {}
    for row in cut:
        lost.setdefault(str(row.get(ATTEMPT_KEY, "?")), set()).add(_step(row))
    known = {attempt.name for attempt in attempts}
    gone = [Attempt(name, min(s), max(s), None, len(s)) for name, s in lost.items() if name not in known]
    counted = [
        replace(a, last_step=max(a.last_step, *steps), discarded=a.discarded + len(steps))
        if (steps := lost.get(a.name))
        else a
        for a in attempts
    ]
    return sorted([*counted, *gone], key=lambda attempt: attempt.first_step) if gone else counted


def read_json(path: Path) -> dict | None:
    """The object in a JSON file, None if there is no such file; raises UserError if it is damaged."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(path.name, str(path), "a JSON file", f"It does not parse: {error}") from error
    if not isinstance(value, dict):
        raise UserError(path.name, type(value).__name__, "a JSON object", f"Look at {path}.")
    return value


def _starts_attempt(previous: Row, row: Row) -> bool:
    if ATTEMPT_KEY in previous and ATTEMPT_KEY in row:
        return previous[ATTEMPT_KEY] != row[ATTEMPT_KEY]
    return _step(row) < _step(previous)


def _step(row: Row) -> int:
    step = row["step"]
    assert isinstance(step, int)
    return step


def _read_jsonl(path: Path) -> tuple[list[Row], list[str]]:
    """(objects, "file:line" of every line that is none)."""
    if not path.is_file():
        return [], []
    rows, torn = parsed(path.read_text("utf-8", errors="replace"))
    return rows, [f"{path.name}:{number}" for number in torn]


def parsed(text: str) -> tuple[list[Row], list[int]]:
    """(objects, numbers of the lines that are none) of JSON lines: a killed writer leaves half a line."""
    rows: list[Row] = []
    torn: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = load_row(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            torn.append(number)
    return rows, torn
