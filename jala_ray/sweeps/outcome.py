"""What a sweep leaves beside its ledger: results.json, table.md, best.json (of a Pareto front best-2.json ... too), report.html."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jala_ray import storage
from jala_ray.parsing import to_dict
from jala_ray.sweeps.driver import Sweep
from jala_ray.sweeps.ledger import Ledger, Record
from jala_ray.sweeps.metrics import TrialMetric
from jala_ray.sweeps.report import write_report
from jala_ray.sweeps.search import errors, pareto
from jala_ray.sweeps.trials import RunTrials
from jala_ray.types import UserError


def publish(sweep: Sweep, ledger: Ledger) -> str:
    """Write all of it; returns the report's address. Raises `UserError` when no trial ran to its end."""
    found = results(sweep, ledger)

    def write(name: str, text: str) -> None:
        storage.write_bytes(storage.join(sweep.folder, name), text.encode(), sweep.options)

    write("results.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    write("table.md", markdown(found))
    trials = sweep.trials
    if isinstance(trials, RunTrials):
        for place, number in enumerate(found["best"], 1):
            best = trials.best(ledger.records[number].values)
            write("best.json" if place == 1 else f"best-{place}.json", json.dumps(to_dict(best), indent=1) + "\n")
    write("report.html", write_report(sweep.folder, found, sweep.domains))
    if not found["best"]:
        failed = next((r.reason for r in ledger if r.state == "failed"), "none has run yet")
        raise UserError(
            "trials that ran to their end", 0, "at least one", f"{sweep.folder}/table.md says why: {failed}"
        )
    return storage.join(sweep.folder, "report.html")


def results(sweep: Sweep, ledger: Ledger) -> dict[str, Any]:
    """The sweep as JSON values. Trials come best first: those that ran to their end, then by how far they came."""
    metrics = sweep.metrics

    def place(record: Record) -> tuple[Any, ...]:
        error = errors(record, metrics[0]) if record.state == "done" else _on_the_way(sweep, record)
        return (
            record.state != "done",
            record.state == "failed",
            -record.step,
            error is None,
            error or 0.0,
            record.number,
        )

    gpus = _gpus(sweep)
    rows = [
        {
            "number": r.number,
            "values": r.values,
            "state": r.state,
            "step": r.step,
            "metrics": {m.name: m.value(r.outcome) for m in metrics},
            "curve": curve(sweep, r),
            "seconds": r.seconds,
            "gpu_hours": round(r.seconds * gpus / 3600, 4),
            "reason": r.reason,
        }
        for r in sorted(ledger, key=place)
    ]
    return {
        "best": [record.number for record in pareto(list(ledger), metrics)],
        "metrics": {m.name: {"label": m.label, "mode": m.mode} for m in metrics},
        "space": {key: domain.to_json() for key, domain in sweep.domains.items()},
        "search": {"method": sweep.strategy.method, "seed": sweep.strategy.seed, "trials": sweep.strategy.trials},
        "halving": _halving(sweep),
        "concurrent": sweep.concurrent,
        "synchronous": sweep.waves,
        "hours": round(sum(r.seconds for r in ledger) / 3600, 4),
        "gpu_hours": round(sum(r.seconds for r in ledger) * gpus / 3600, 4),
        "trials": rows,
    }


def comparable(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A table without clocks: what two sweeps of the same settings must share, in the order of the numbers."""
    timed = ("seconds", "gpu_hours")
    rows = [{key: value for key, value in row.items() if key not in timed} for row in found["trials"]]
    return sorted(rows, key=lambda row: row["number"])


def shown_metric(sweep: Sweep) -> TrialMetric:
    """What curves are of: the metric of halving, or the main one."""
    return sweep.halving.metric if sweep.halving is not None else sweep.metrics[0]


def curve(sweep: Sweep, record: Record) -> list[list[float]]:
    """[[step, value], ...] of a trial."""
    metric = shown_metric(sweep)
    found = ((row["step"], metric.value(row)) for row in record.rows)
    return [[step, value] for step, value in found if value is not None]


def _on_the_way(sweep: Sweep, record: Record) -> float | None:
    found = curve(sweep, record)
    return shown_metric(sweep).error(found[-1][1]) if found else None


def _halving(sweep: Sweep) -> dict[str, Any] | None:
    if sweep.halving is None:
        return None
    return {"metric": sweep.halving.metric.name, "rungs": sweep.halving.rungs, "factor": sweep.halving.factor}


def _gpus(sweep: Sweep) -> float:
    cluster = getattr(getattr(sweep.trials, "base", None), "cluster", None)
    return cluster.workers * cluster.gpus_per_worker if cluster is not None else 0.0


def markdown(found: Mapping[str, Any]) -> str:
    """The table of trials, best first."""
    keys, metrics = list(found["space"]), list(found["metrics"])
    head = ["trial", *keys, *metrics, "state", "step", "minutes", "GPU-hours"]
    lines = [" | ".join(["", *head, ""]).strip(), "|".join(["", *["---"] * len(head), ""])]
    for row in found["trials"]:
        state = row["state"] + (f": {row['reason']}".replace("|", "/") if row["reason"] else "")
        mark = f"{row['number']}{' (best)' if row['number'] in found['best'] else ''}"
        values = [row["values"][key] for key in keys]
        scores = [_figure(row["metrics"][name]) for name in metrics]
        cells = [mark, *values, *scores, state, row["step"], f"{row['seconds'] / 60:.1f}", f"{row['gpu_hours']:.2f}"]
        lines.append(" | ".join(["", *map(str, cells), ""]).strip())
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
