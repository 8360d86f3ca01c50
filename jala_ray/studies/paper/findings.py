"""What is to be known before the table's numbers are used: of the settings, of luck, of what the rows saw, of the runs themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from jala_ray.config import JalaConfig, RunConfig
from jala_ray.parsing import flatten
from jala_ray.reports.kit.findings import Finding, worst_first
from jala_ray.reports.kit.widgets import DOMAIN_NAMES
from jala_ray.reports.motion.tables import limits
from jala_ray.reports.warnings import holding_still
from jala_ray.studies.paper.census import exposure
from jala_ray.studies.paper.plan import PlannedStudy
from jala_ray.studies.paper.rows import GROUNDED
from jala_ray.types import DOMAINS

UNEQUAL = 0.01
"""Rows that see labelled samples more unequally than by this share are named."""
OFTEN = ("train.steps", "data.epoch_rows", "data.task_weights", "data.source_weights")
"""Settings by which a row may see a labelled clip more or less than once per epoch."""
STARTED = 0.01
"""Of LAP's start, what may be left at a run's end: alpha^steps."""


def findings(study: PlannedStudy, results: Mapping[str, Any]) -> list[Finding]:
    """Warnings of the page, the serious ones first. `results` is what `results.analyse` gives."""
    of_table = [*worse_than_still(results["table"], results["references"]), *_luck(results), *of_video(results)]
    return worst_first([*of_study(study), *of_table, *unequal(study.base, results), *_of_runs(results)])


def of_study(study: PlannedStudy) -> Iterator[Finding]:
    """`of_settings` with the steps of the base, which has LAP."""
    return of_settings(study.base, exposure(study.base, study.manifest).steps)


def of_settings(base: RunConfig, steps: int) -> Iterator[Finding]:
    """Models that are the paper's in name alone, known before the first step."""
    encoder, backbone, objective = base.model.encoder, base.model.backbone, base.objective
    if encoder.pretrained is None:
        detail = "The rows show that the code runs, and nothing of DINOv3 or V-JEPA 2: pass --model.encoder.pretrained, and --vjepa."
        yield Finding("bad", "The frozen encoders have random weights.", detail)
    if backbone.pretrained is None:
        detail = "The paper begins with InternVL3-2B: --preset jala does."
        yield Finding("warn", "The backbone has random weights.", detail)
    left = objective.ema.over(steps) ** steps if isinstance(objective, JalaConfig) else 0.0
    if left > STARTED:
        detail = "LAP hardly follows LSP in so few steps: lower --objective.ema.alpha."
        yield Finding(
            "warn",
            f"At the end LAP is still {left:.0%} of its start.",
            detail,
            f"{steps:,} steps, wanted {STARTED:.0%}",
        )


def worse_than_still(rows: Mapping[str, Any], references: Mapping[str, Any]) -> Iterator[Finding]:
    """One finding a domain, however many rows it is of."""
    for domain in DOMAINS:
        kept = {name: {domain: line[domain]} for name, line in {**rows, **references}.items()}
        alike = {row: finding for row in rows for finding in holding_still(row, kept)}
        if alike:
            text = f"{DOMAIN_NAMES[domain]}: worse than holding the true first pose still: {', '.join(alike)}."
            first = next(iter(alike.values()))
            yield replace(first, text=text, figure="; ".join(f"{row}: {one.figure}" for row, one in alike.items()))


def _luck(results: Mapping[str, Any]) -> Iterator[Finding]:
    if min(len(row["seeds"]) for row in results["rows"].values()) == 1:
        detail = "Intervals are of clips alone: pass --seeds 3 or more before a difference is believed."
        yield Finding("warn", "A row has one run: what training's luck does is not in its interval.", detail)
    if failed := results["left_out"]:
        clip, why = next(iter(failed.items()))
        text = f"{len(failed):,} clip{'s' if len(failed) > 1 else ''} could not be scored and stand in no number."
        yield Finding("warn", text, f"The first, {clip}: {why}")


def of_video(results: Mapping[str, Any]) -> Iterator[Finding]:
    """What `grounded` may be credited with: the difference to its control, and only where its interval says so."""
    if GROUNDED not in results["rows"]:
        return
    step = results["steps"].get(GROUNDED, {"seeds": []})
    if not step["seeds"]:
        detail = (
            "A denser loss on labelled clips may be all of it: run the row grounded_labelled_only with the same seeds."
        )
        yield Finding(
            "warn", "No gain of grounded can be put down to unlabelled video: its control is not done.", detail
        )
        return
    found = step["wild"]["mpjpe"]
    reach = limits({key: found[key] for key in ("mean", "low", "high", "clips")})  # type: ignore[arg-type]
    if found["mean"] is not None and (reach is None or reach[1] >= 0):
        between = "none, of so few clips" if reach is None else f"{reach[0]:+.2f} to {reach[1]:+.2f}"
        detail = (
            "Its interval against grounded_labelled_only, the same but on labelled clips alone, does not lie below 0."
        )
        figure = f"Wild MPJPE {found['mean']:+.2f} cm, interval {between}"
        yield Finding("warn", "It is not shown that unlabelled video helps grounded.", detail, figure)


def unequal(base: RunConfig, results: Mapping[str, Any]) -> Iterator[Finding]:
    reads = {name: row["reads"] for name, row in results["rows"].items()}
    labelled = {name: one["samples"] * one["labelled"] for name, one in reads.items()}
    least, most = min(labelled.values()), max(labelled.values())
    if most - least > UNEQUAL * most:
        figure = ", ".join(f"{name} {count:,.0f} of {reads[name]['samples']:,}" for name, count in labelled.items())
        known = flatten(base)
        given = " and ".join(f"--{key}" for key in OFTEN if known[key])
        detail = (
            f"{given}: a labelled clip comes as often as that has it, among all clips or among labelled ones alone; without it each row "
            "sees every labelled clip once per epoch."
        )
        yield Finding("warn", "Rows see labelled samples unequally often.", detail, figure)


def _of_runs(results: Mapping[str, Any]) -> Iterator[Finding]:
    for run, lines in results["runs_warn"].items():
        for line in lines:
            yield Finding("warn", f"{run}: {line.removeprefix('WARNING ')}")
