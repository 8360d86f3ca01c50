"""`--dry-run`: the runs with what each changes, what the table can hold, and the cost. All of it is computed, none measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jala_ray.evaluation.scores import PAPER_METRICS, PELA_TABLE_1
from jala_ray.hands.metrics import METRICS
from jala_ray.reports.kit.widgets import DOMAIN_NAMES
from jala_ray.studies.paper.census import Exposure, exposure
from jala_ray.studies.paper.findings import of_study
from jala_ray.studies.paper.plan import PlannedStudy
from jala_ray.studies.paper.rows import OF_THE_RUN, UNPRINTED, Row, changes
from jala_ray.training.estimate import GB, HEADROOM, RunEstimate, compute, data_of, gpu_hours, step_seconds
from jala_ray.types import DOMAINS


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    row: Row
    changes: Mapping[str, tuple[Any, Any]]
    reads: Exposure
    found: RunEstimate
    hours: float | None
    """Of all GPUs together in wall clock; None: no speed was named."""


def costs(study: PlannedStudy) -> list[Cost]:
    """Of one seed of each row."""
    options, rate = study.options, _rate(study)
    found = []
    for row in study.rows:
        config = study.config(row, study.base.seed)
        reads, computed = exposure(config, study.manifest), compute(config, data_of(config, options))
        hours = None if rate is None else reads.steps * computed.flops_step / rate / 3600
        changed = {k: v for k, v in changes(study.base, config).items() if k not in OF_THE_RUN}
        found.append(Cost(row, changed, reads, computed, hours))
    return found


def gpus(study: PlannedStudy) -> float:
    """Of a run, at least the one that an estimate is of."""
    if study.asked.local:
        return 1.0
    return max(1.0, study.base.cluster.workers * study.base.cluster.gpus_per_worker)


def _rate(study: PlannedStudy) -> float | None:
    """FLOP/s of all GPUs together: of the run that is named, taken for one of the base's; or as assumed; None: unknown."""
    asked = study.asked
    if asked.like is not None:
        base = compute(study.base, data_of(study.base, study.options))
        return base.flops_step / step_seconds(asked.like, study.options)
    return None if asked.tflops is None else asked.tflops * 1e12 * gpus(study)


def listing(study: PlannedStudy) -> str:
    """What `--dry-run` prints. Raises `ConfigError` where --like has no metrics, or sizes are not known."""
    found = costs(study)
    seeds, runs = len(study.seeds), len(study.runs())
    lines = [
        f"PELA's Table 1 on {study.manifest.path}: {len(found)} rows x {seeds} seed{'s' if seeds > 1 else ''} = {runs} runs "
        f"into {study.folder}",
        "",
        *_data(study),
        "",
        "rows; each differs from another one in one thing, and from the base, dino, in the settings below it (figures computed):",
        *(line for cost in found for line in _row(study, cost)),
        "",
        *_shared(study),
        "",
        *_total(study, found),
        "",
        *_printed(study.rows),
        "",
        "not computed here:",
        *(f"  {what}: {why}" for what, why in study.census.missing().items()),
        *(finding.line for finding in of_study(study)),
    ]
    return "\n".join(lines)


def _data(study: PlannedStudy) -> Iterator[str]:
    found = study.census
    for domain in DOMAINS:
        train, labelled = found.train[domain], found.labelled[domain]
        labels, scored = f"{labelled:,} of them with labels", f"{found.scored[domain]:,} clips to score"
        yield f"{DOMAIN_NAMES[domain]:5} {train:>9,} training rows, {labels}; {scored}"


def told(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Settings with their two values."""
    return ", ".join(f"{key} {_plain(was)} -> {_plain(now)}" for key, (was, now) in changed.items())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _row(study: PlannedStudy, cost: Cost) -> Iterator[str]:
    row, reads, found = cost.row, cost.reads, cost.found
    against = "" if row.against is None else f", against {row.against}"
    yield f"  {row.name} ({row.label or UNPRINTED}){against}: {row.thing}"
    yield f"      changes: {told(cost.changes) or 'nothing'}"
    fits = "fits" if found.memory <= study.asked.gpu_memory_gb * GB else "does NOT fit"
    hours = "" if cost.hours is None else f"; {cost.hours:.2f} h, {cost.hours * gpus(study):.2f} GPU-hours"
    yield (
        f"      steps: {reads.steps:,}, samples: {reads.samples:,}, {reads.samples * reads.labelled:,.0f} of them with labels; "
        f"{found.memory / GB:.2f} GB per GPU, {fits} in {study.asked.gpu_memory_gb:g}; {found.flops_step / 1e12:,.2f} TFLOP per step{hours}"
    )


def _shared(study: PlannedStudy) -> Iterator[str]:
    yield "made once, for all runs:"
    trained = study.tokenizer
    if trained is None:
        yield f"  motion tokenizer: given, {study.base.motion_tokenizer}"
    else:
        yield f"  motion tokenizer: trained on the labelled rows, {trained.train.steps:,} steps of {trained.train.batch} chunks"
    kinds = sorted({study.config(row, study.base.seed).model.encoder.kind for row in study.rows})
    made = ", ".join(kinds) if study.asked.cache else "none, each run decodes (--cache makes them)"
    yield f"  caches of codes, features and pictures: {made}"


def _total(study: PlannedStudy, found: Sequence[Cost]) -> Iterator[str]:
    seeds, keep = len(study.seeds), study.base.train.keep
    peak = max(cost.found.memory for cost in found)
    kept = seeds * keep * sum(cost.found.checkpoint for cost in found)
    most = max(cost.found.checkpoint for cost in found)
    yield "all runs, one after another (computed; tokenizer, caches and evaluation are not in it):"
    yield f"  memory: {peak / GB:.2f} GB per GPU at most, with {HEADROOM:.0%} for what is not counted, on {gpus(study):g} GPU(s)"
    yield f"  storage: {(kept + most) / GB:.2f} GB, {keep} checkpoint(s) kept of each run and one being written"
    hours = [cost.hours for cost in found]
    if None in hours:
        yield "  hours: unknown; --like RUN takes the speed of a run of dino that is there, --tflops N assumes one"
        return
    whole = seeds * sum(hour for hour in hours if hour is not None)
    yield f"  hours: {whole:.2f}"
    yield from gpu_hours((whole * gpus(study),), study.asked.gpu_hour_price)


def _printed(rows: Sequence[Row]) -> Iterator[str]:
    yield f"printed in the paper, cm, {' / '.join(DOMAIN_NAMES[domain] for domain in DOMAINS)}:"
    yield f"  {'':16}" + "".join(f"{METRICS[metric].label:>16}" for metric in PAPER_METRICS)
    for row in rows:
        if row.printed is not None:
            numbers = PELA_TABLE_1[row.printed]
            cells = [" / ".join(f"{numbers[domain][metric]:.2f}" for domain in DOMAINS) for metric in PAPER_METRICS]
            yield f"  {row.name:16}" + "".join(f"{cell:>16}" for cell in cells)
