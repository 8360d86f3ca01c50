"""From the scores of all runs that are done to the table, its steps from row to row, and what is to be known before it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.evaluation.bootstrap import nested
from jala_ray.evaluation.predict import FLOOR, HOLD_FIRST, MEAN_MOTION
from jala_ray.evaluation.scores import PAPER_METRICS, PELA_TABLE_1
from jala_ray.hands.metrics import METRICS
from jala_ray.parsing import diff, from_dict, to_dict
from jala_ray.presets import PRESETS
from jala_ray.reports.kit.widgets import DOMAIN_NAMES
from jala_ray.reports.motion.tables import few_clips, limits
from jala_ray.studies.paper.asked import begun_from
from jala_ray.studies.paper.census import Missing, exposure
from jala_ray.studies.paper.cost import told
from jala_ray.studies.paper.findings import findings
from jala_ray.studies.paper.parts import FACTS
from jala_ray.studies.paper.plan import PlannedStudy
from jala_ray.studies.paper.rows import BASE, CONTROL, OF_THE_RUN, OURS, UNPRINTED, Row, changes, table
from jala_ray.studies.paper.runs import MODEL, scores_of
from jala_ray.training.log import environment
from jala_ray.training.setup import RESUMABLE
from jala_ray.types import DOMAINS, Domain

REFERENCES = (FLOOR, HOLD_FIRST, MEAN_MOTION)
SCORES = re.compile(r"seed-(\d+)\.json")
RUNS_OWN = (*OF_THE_RUN, *RESUMABLE)
"""Beginnings of settings that a run may have of its own in any row."""
SETTINGS_OF_THE_STUDY = ("name", "storage.", "log.", "cluster.", "data.manifest", "motion_tokenizer")


@dataclass(frozen=True)
class TableScores:
    """Scores of the runs that are done: row -> seed -> what `runs.work` wrote."""

    runs: Mapping[str, Mapping[int, Mapping[str, Any]]]

    @cached_property
    def clips(self) -> list[str]:
        """Those that every run has scored, in the manifest's order."""
        first, *others = [run["clips"] for run in self._every()]
        shared = set(first).intersection(*others)
        return [clip for clip in first if clip in shared]

    def failed(self) -> dict[str, str]:
        """Clips that a run could not score, with a reason; they are in no number."""
        return {clip: why for run in self._every() for clip, why in run["failed"].items()}

    def _every(self) -> list[Mapping[str, Any]]:
        return [run for of_row in self.runs.values() for run in of_row.values()]

    def seeds(self, *rows: str) -> list[int]:
        """Those that all of the rows have."""
        return sorted(set.intersection(*(set(self.runs.get(row, ())) for row in rows)))

    def matrix(self, row: str, domain: Domain, metric: str, seeds: Sequence[int], of: str = MODEL) -> np.ndarray:
        """(seeds, clips of the domain) in the metric's unit; NaN where there is nothing to score."""
        return np.array([self._line(self.runs[row][seed], domain, metric, of) for seed in seeds], float)

    def _line(self, run: Mapping[str, Any], domain: Domain, metric: str, of: str) -> list[float | None]:
        place = {clip: i for i, clip in enumerate(run["clips"])}
        kept = [place[clip] for clip in self.clips if run["domain"][place[clip]] == domain]
        values = run["values"].get(of, {}).get(metric)
        return [None if values is None else values[i] for i in kept]


def load(study: PlannedStudy) -> TableScores:
    """Of all runs that are done, whatever rows and seeds the call asks for, in the order of the table."""
    runs: dict[str, dict[int, Any]] = {}
    for row in table(controls=True, ours=True):
        names = sorted(storage.list_files(study.place("scores", row.name), study.options))
        for seed in (int(name[1]) for name in map(SCORES.fullmatch, names) if name):  # a killed writer leaves others
            runs.setdefault(row.name, {})[seed] = scores_of(study, row, seed)
    return TableScores(runs)


def analyse(study: PlannedStudy, found: TableScores) -> dict[str, Any]:
    """All that the table says, ready for JSON, INTERVAL = {mean, low, high, clips} in the metric's unit, null where there is none.

    ```
    table       {row: {domain: {metric: INTERVAL}}}, references alike {floor, hold_first, mean_motion}
    printed     {row: {domain: {metric: number}}}, of the paper
    steps       {row: {against, thing, seeds, domain: {metric: INTERVAL with `printed`}}}: row - against, the same clips and seeds
    not_computed, left_out {what or clip: why}
    rows        {row: {printed, thing, changes, seeds, reads, cost, checkpoints}}, reads computed, cost measured
    runs_warn   {run: lines of its own page}; warnings, the lines of this page
    ```
    """
    shown = [row for row in rows_of_table(found) if row.name in found.runs]
    computed = {row.name: _line(found, row.name, found.seeds(row.name)) for row in shown}
    printed = {row.name: PELA_TABLE_1[row.printed] for row in shown if row.printed is not None}
    one = shown[0].name
    references = {name: _line(found, one, found.seeds(one)[:1], name) for name in REFERENCES}
    results = {
        "manifest": study.manifest.path,
        "clips": {domain: max((c["clips"] for c in computed[one][domain].values()), default=0) for domain in DOMAINS},
        "table": computed,
        "references": references,
        "printed": printed,
        "steps": {row.name: _step(found, row) for row in shown if row.against in found.runs},
        "not_computed": missing(study, found, computed),
        "left_out": found.failed(),
        "runs_warn": {
            f"{row}, seed {seed}": run["warnings"] for row, of in found.runs.items() for seed, run in of.items()
        },
        "rows": {row.name: _facts(study, found, row) for row in shown},
        "tokenizer": study.read(FACTS),
        "base": to_dict(study.base),
        "generation": asdict(study.asked.generation),
        "preset": study.asked.preset,
        "settings": {key: list(pair) for key, pair in settings(study.base, study.asked.preset).items()},
        "environment": environment(),
    }
    return results | {"warnings": [finding.line for finding in findings(study, results)]}


def rows_of_table(found: TableScores) -> tuple[Row, ...]:
    """With the control, and with rows of ours, where they were done."""
    return table(controls=CONTROL in found.runs, ours=any(row.name in found.runs for row in OURS))


def interval(values: np.ndarray) -> dict[str, float | None]:
    """Over (seeds, clips), by a bootstrap nested over both."""
    numbers = asdict(nested(values))
    return {name: None if np.isnan(value) else value for name, value in numbers.items()}


def _line(found: TableScores, row: str, seeds: Sequence[int], of: str = MODEL) -> dict[str, Any]:
    return {d: {m: interval(found.matrix(row, d, m, seeds, of)) for m in PAPER_METRICS} for d in DOMAINS}


def _step(found: TableScores, row: Row) -> dict[str, Any]:
    assert row.against is not None
    seeds = found.seeds(row.name, row.against)
    step: dict[str, Any] = {"against": row.against, "thing": row.thing, "seeds": seeds}
    if not seeds:
        return step
    for d in DOMAINS:
        step[d] = {}
        for m in PAPER_METRICS:
            a, b = (found.matrix(name, d, m, seeds) for name in (row.name, row.against))
            step[d][m] = interval(a - b) | {"printed": printed_step(row, d, m)}
    return step


def printed_step(row: Row, domain: Domain, metric: str) -> float | None:
    """The same difference in the paper; None where it lacks one of the two rows."""
    known = {one.name: one.printed for one in table(True, True)}
    own, other = (known.get(name or "") for name in (row.name, row.against))
    if own is None or other is None:
        return None
    return round(PELA_TABLE_1[own][domain][metric] - PELA_TABLE_1[other][domain][metric], 2)


def missing(study: PlannedStudy, found: TableScores, computed: Mapping[str, Any]) -> Missing:
    """What of the paper's table this one has not, and why."""
    lacks = {f"the row {row.name}": "Its runs have not been made." for row in table() if row.name not in found.runs}
    for domain in (d for d in DOMAINS if study.census.scored.get(d)):
        for metric in PAPER_METRICS:
            if all(line[domain][metric]["mean"] is None for line in computed.values()):
                what = f"{METRICS[metric].label}, {DOMAIN_NAMES[domain]}"
                lacks[what] = "No scored clip has a value of it."
    return lacks | study.census.missing()


def _facts(study: PlannedStudy, found: TableScores, row: Row) -> dict[str, Any]:
    seeds = found.seeds(row.name)
    runs = [found.runs[row.name][seed] for seed in seeds]
    config = from_dict(RunConfig, runs[0]["config"])
    changed = {key: list(pair) for key, pair in changes(study.base, config).items() if not key.startswith(RUNS_OWN)}
    measured = {name: float(np.mean([run["cost"][name] for run in runs])) for name in runs[0]["cost"]}
    return {
        "printed": row.label,
        "thing": row.thing,
        "changes": changed,
        "seeds": seeds,
        "reads": asdict(exposure(config, study.manifest)),
        "cost": measured,
        "checkpoints": [run["checkpoint"] for run in runs],
    }


def settings(base: RunConfig, preset: str) -> dict[str, tuple[Any, Any]]:
    """What all runs have otherwise than a named preset, but for where things lie."""
    if preset not in PRESETS:
        return {}
    changed = diff(begun_from(PRESETS[preset]), base)
    return {key: pair for key, pair in changed.items() if not key.startswith(SETTINGS_OF_THE_STUDY)}


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(results: Mapping[str, Any]) -> str:
    """table.md: what does not change with the clock."""
    return "\n".join(_markdown(results)) + "\n"


def _markdown(results: Mapping[str, Any]) -> Iterator[str]:
    yield f"# PELA's Table 1 on {results['manifest'].rstrip('/').rpartition('/')[2]}"
    yield ""
    counts = ", ".join(f"{DOMAIN_NAMES[d]} {n:,}" for d, n in results["clips"].items())
    yield f"Means in cm, lower is better, with 95 % intervals by a bootstrap over {_seeds(results)} and clips ({counts})."
    few = few_clips(line[d] for line in results["table"].values() for d in DOMAINS)
    yield f"Below each row stands what the paper prints, on its own data.{few}"
    yield ""
    columns = [(d, m) for m in PAPER_METRICS for d in DOMAINS]
    yield from _head(["", *(f"{METRICS[m].label} {DOMAIN_NAMES[d]}" for d, m in columns)])
    for name, line in results["table"].items():
        yield _cells(name, (shown(line[d][m]) for d, m in columns))
        if name in results["printed"]:
            numbers = results["printed"][name]
            title = f"*printed: {results['rows'][name]['printed']}*"
            yield _cells(title, (f"{numbers[d][m]:.2f}" for d, m in columns))
    for name, line in results["references"].items():
        yield _cells(f"{name}, no model", (shown(line[d][m]) for d, m in columns))
    yield ""
    yield "## From row to row"
    yield ""
    yield "Differences in cm over the same clips and seeds, below 0 where the first row is better; below each the printed one."
    yield ""
    yield from _head(["", *(f"{METRICS[m].label} {DOMAIN_NAMES[d]}" for d, m in columns)])
    for name, step in results["steps"].items():
        if step["seeds"]:
            yield _cells(f"{name} - {step['against']}", (shown(step[d][m], "+") for d, m in columns))
            if step[DOMAINS[0]][PAPER_METRICS[0]]["printed"] is not None:
                yield _cells("*printed*", (f"{step[d][m]['printed']:+.2f}" for d, m in columns))
    yield ""
    for name, row in results["rows"].items():
        against = results["steps"].get(name, {}).get("against")
        whose = "" if row["printed"] else f" ({UNPRINTED})"
        step = f", against {against}" if against else ""
        yield f"- **{name}**{whose}{step}: {row['thing']}. From {BASE}: {told(row['changes']) or 'nothing'}."
    yield ""
    yield "## Not computed here"
    yield ""
    for what, why in results["not_computed"].items():
        yield f"- {what}: {why}"
    if results["left_out"]:
        yield ""
        yield f"{len(results['left_out']):,} clips could not be scored: {', '.join(sorted(results['left_out']))}."


def _seeds(results: Mapping[str, Any]) -> str:
    most = max(len(row["seeds"]) for row in results["rows"].values())
    return "one seed" if most == 1 else f"up to {most} seeds, paired,"


def _head(names: Sequence[str]) -> Iterator[str]:
    yield _cells(names[0], names[1:])
    yield "|---" * len(names) + "|"


def _cells(first: str, rest: Iterator[str] | Sequence[str]) -> str:
    return "| " + " | ".join([first, *rest]) + " |"


def shown(found: Mapping[str, Any], sign: str = "") -> str:
    """A mean with its limits, where it has some."""
    if found["mean"] is None:
        return "n/a"
    reach = limits_of(found)
    return f"{found['mean']:{sign}z.2f}" + ("" if reach is None else f" [{reach[0]:z.2f}, {reach[1]:z.2f}]")


def limits_of(found: Mapping[str, Any]) -> tuple[float, float] | None:
    """Those to show, as on the page of an evaluation: none of few clips."""
    return limits({key: found[key] for key in ("mean", "low", "high", "clips")})  # type: ignore[arg-type]
