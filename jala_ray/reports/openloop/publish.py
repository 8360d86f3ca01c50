"""What an open-loop comparison leaves in its folder: openloop.json, table.md and report.html."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jala_ray import storage
from jala_ray.policy.openloop.job import Comparison, reopen
from jala_ray.policy.openloop.records import POLICY, EpisodeRecord
from jala_ray.policy.openloop.scores import ROWS, ActionScores, score, summarise
from jala_ray.reports.openloop.page import findings_of, openloop_page
from jala_ray.storage import StorageOptions
from jala_ray.types import UserError

REPORT, FIGURES, TABLE = "report.html", "openloop.json", "table.md"
SHOWN = 3
"""Episodes drawn: the best, the median and the worst one."""
RESAMPLES = 10_000


def publish(work: Comparison, resamples: int = RESAMPLES) -> str:
    """Score, draw and write; returns the report's address. Raises `UserError` where no episode could be read."""
    if missing := work.missing():
        raise UserError(
            f"parts of {work.job.out}", f"{len(missing)} missing", "all of them", "Run the same command again."
        )
    records = work.finish()
    names = next((tuple(name for name, _ in record.action) for record in records if record.failure is None), ())
    scores = score(records, work.statistics(names))
    figures = summarise(scores, resamples)
    job = dataclasses.asdict(work.job)
    figures["facts"] = {
        name: job[name] for name in ("policy", "sets", "embodiment", "held_out", "weights", "seed", "digest")
    }
    failed = [record for record in records if record.failure is not None]
    figures["failures"] = [{"episode": f"{one.set}/{one.number}", "why": one.failure} for one in failed]
    figures["warnings"] = [finding.line for finding in findings_of(figures)]
    figures = json.loads(json.dumps(figures, allow_nan=False))
    texts = {
        FIGURES: json.dumps(figures, indent=1),
        TABLE: markdown(figures),
        REPORT: openloop_page(figures, picked(scores)),
    }
    for name, text in texts.items():
        storage.write_bytes(storage.join(work.job.out, name), text.encode(), options=work.job.options)
    return storage.join(work.job.out, REPORT)


def republish(out: str, options: StorageOptions | None = None) -> str:
    """The same again from what the folder holds; no policy is asked."""
    known = json.loads(storage.read_bytes(storage.join(out, FIGURES), options))
    return publish(reopen(out, options or StorageOptions()), known["resamples"])


def warnings_of(out: str, options: StorageOptions | None = None) -> list[str]:
    """A line each, the serious ones first."""
    return json.loads(storage.read_bytes(storage.join(out, FIGURES), options))["warnings"]


def picked(scores: ActionScores) -> list[EpisodeRecord]:
    """Those with the smallest, the median and the largest error, each once."""
    order = scores.overall(POLICY).argsort(kind="stable")
    places = dict.fromkeys(int(order[at]) for at in (0, (len(order) - 1) // 2, len(order) - 1))
    return [scores.records[place] for place in places]


def markdown(figures: Mapping[str, Any]) -> str:
    """Verdicts and errors."""
    verdicts = [
        (v["check"], {True: "yes", False: "no", None: "not told"}[v["passed"]], v["words"]) for v in figures["verdicts"]
    ]
    errors = [(row, ROWS[row], _percent(found["error"])) for row, found in figures["rows"].items()]
    names, own = figures["dimensions"], figures["rows"][POLICY]
    by_dimension = [(name, *map(_short, (own["mae"][i], own["rmse"][i]))) for i, name in enumerate(names)]
    parts = [
        ("Verdicts", ("does it", "", "what is so"), verdicts),
        ("Errors", ("row", "what acts", "of the range"), errors),
        ("By dimension", ("dimension", "MAE", "RMSE"), by_dimension),
    ]
    lines = [f"# {figures['facts']['policy']} beside {figures['episodes']} recorded episodes", ""]
    for title, head, rows in parts:
        lines += [f"## {title}", "", *_table(head, rows), ""]
    return "\n".join(lines)


def _percent(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "n/a"
    limits = "" if found["low"] is None else f" ({found['low']:.2%} to {found['high']:.2%})"
    return f"{found['mean']:.2%}{limits}"


def _short(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
