"""From the scores of all jobs to means and differences with intervals over seeds and clips (`results.json`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jala_ray.evaluation.bootstrap import nested
from jala_ray.evaluation.predict import FLOOR, HOLD_FIRST, MEAN_MOTION
from jala_ray.hands.metrics import METRICS
from jala_ray.studies.alignment.evaluate import ENSEMBLES, HEALTH, MODEL
from jala_ray.studies.alignment.keeping import clips_file
from jala_ray.studies.alignment.stages import StudyFolder, result_of
from jala_ray.studies.alignment.variants import variants
from jala_ray.studies.alignment.world import PARTS, part_of
from jala_ray.types import UserError

CONTRASTS = (("no_align", "alignment"), ("grounded_labelled_only", "unlabelled video"))
"""What `grounded` is compared with for the claims, and what the difference is due to."""
LAB_MAY_LOSE = 0.5
"""cm by which Lab's error may rise with what is claimed on Wild."""
REFERENCES = ("no_align", "grounded_labelled_only", "jala")
"""Variants that all others are compared with, paired by seed."""
OTHER_ROWS = (FLOOR, HOLD_FIRST, MEAN_MOTION)


@dataclass(frozen=True)
class StudyResults:
    """Results of the jobs that are done."""

    jobs: Mapping[str, Mapping[int, Mapping[str, Any]]]
    """Variant -> seed -> what `evaluate.evaluate` gave."""
    clips: Mapping[str, Any]
    """The scored clips: `clips`, `domain`, `source`, and `values` {row: {metric: [..]}} of the rows that are no model's."""

    def __post_init__(self) -> None:
        scored = {v: {len(one) for motion in self._motions(v) for one in motion.values()} for v in self.jobs}
        if set().union(*scored.values()) - {len(self.clips["clips"])}:
            expected = f"the same {len(self.clips['clips'])} clips for every job"
            raise UserError("scored clips", scored, expected, "Delete scores/ and run again.")

    def _motions(self, variant: str) -> list[Mapping[str, Any]]:
        return [motion for job in self.jobs[variant].values() for motion in job["motion"].values()]

    def generating(self) -> list[str]:
        """Variants with generated motion."""
        return [variant for variant in self.jobs if self._motions(variant)]

    def metrics(self) -> list[str]:
        """Those that every job has: one that was added since is in none of the older ones."""
        values = [*self.clips["values"].values(), *(m for variant in self.jobs for m in self._motions(variant))]
        return [key for key in METRICS if all(key in row for row in values)]

    def seeds(self, *variants: str) -> list[int]:
        """Seeds that all of the variants have."""
        return sorted(set.intersection(*(set(self.jobs.get(variant, ())) for variant in variants)))

    def matrix(
        self, variant: str, part: str, metric: str, ensemble: int, row: str = MODEL, seeds: Sequence[int] | None = None
    ) -> np.ndarray:
        """(seeds, clips of the part) in the metric's unit; NaN where there is nothing to score. Raises `UserError` without such a run."""
        chosen = self.seeds(variant) if seeds is None else seeds
        if not len(chosen):
            raise UserError("runs", variant, "at least one that is done")
        kept = part_of(self.clips["domain"], self.clips["source"], part)
        if row != MODEL:
            return np.tile(np.array(self.clips["values"][row][metric], float)[kept], (len(chosen), 1))
        motions = [self.jobs[variant][seed]["motion"][str(ensemble)] for seed in chosen]
        return np.array([motion[metric] for motion in motions], float)[:, kept]

    def mean(self, variant: str, part: str, metric: str, ensemble: int, seed: int) -> float | None:
        """Over the clips of the part, of the model of one seed; None where there is nothing to score."""
        return _seed_means(self.matrix(variant, part, metric, ensemble, MODEL, [seed]))[0]


def load(study: StudyFolder) -> StudyResults:
    """Of all jobs of the study that are done, here or where scores are kept, in the order of the variants.

    Raises `UserError` before the first evaluation.
    """
    jobs: dict[str, dict[int, Any]] = {}
    folders = [folder for folder in (study.scores, study.kept_scores) if folder is not None]
    for variant in variants(study.base()):
        found = {
            file.stem: result_of(file) for folder in folders for file in (folder / variant.name).glob("seed-*.json")
        }
        done = {int(seed.removeprefix("seed-")): result for seed, result in found.items() if result is not None}
        if done:
            jobs[variant.name] = dict(sorted(done.items()))
    if (clips := clips_file(study)) is None:
        raise UserError("clips.json", str(study.scores), "one job at least that is done and generates motion")
    return StudyResults(jobs, json.loads(clips.read_text()))


def analyse(found: StudyResults, resamples: int) -> dict[str, Any]:
    """Everything that the report says of the runs, ready for JSON, INTERVAL = {mean, low, high, clips}.

    ```
    motion   {E: {part: {clips, means: {variant or other row: {metric: INTERVAL}},
                         differences: {reference: {variant: {metric: INTERVAL}}}, seeds: {variant: [..]}}}}
    latents  {variant: {probes: {group: {subject: mean R2 of the wrist over seeds}}, health: {name: last value, mean over seeds}}}
    cost     {variant: {training_s, samples_per_s, evaluation_s}}, means over seeds
    ```
    A difference is variant - reference over the seeds that both have, the same clips: negative where the variant is better.
    """
    generating = found.generating()
    motion = {
        str(ensemble): {part: _part(found, generating, part, ensemble, resamples) for part in PARTS}
        for ensemble in ENSEMBLES
    }
    return {
        "seeds": {variant: found.seeds(variant) for variant in found.jobs},
        "motion": motion,
        "latents": {variant: _latents(list(found.jobs[variant].values())) for variant in found.jobs},
        "cost": {variant: _cost(list(found.jobs[variant].values())) for variant in found.jobs},
    }


def _part(found: StudyResults, names: Sequence[str], part: str, ensemble: int, resamples: int) -> dict[str, Any]:
    def interval(values: np.ndarray) -> dict[str, float | None]:
        numbers = asdict(nested(values, resamples=resamples))
        return {name: None if np.isnan(value) else value for name, value in numbers.items()}

    def values(variant: str, metric: str, row: str = MODEL, seeds: Sequence[int] | None = None) -> np.ndarray:
        return found.matrix(variant, part, metric, ensemble, row, seeds)

    metrics = found.metrics()
    means = {v: {metric: interval(values(v, metric)) for metric in metrics} for v in names}
    one = names[0]
    first = found.seeds(one)[:1]  # the floor and the trivial rows have no seeds
    means |= {row: {m: interval(values(one, m, row, first)) for m in metrics} for row in OTHER_ROWS}
    differences: dict[str, dict[str, Any]] = {}
    for reference in (r for r in REFERENCES if r in names):
        differences[reference] = {}
        for variant in (v for v in names if v != reference):
            seeds = found.seeds(variant, reference)
            if seeds:
                pairs = {m: [values(v, m, MODEL, seeds) for v in (variant, reference)] for m in metrics}
                differences[reference][variant] = {m: interval(a - b) for m, (a, b) in pairs.items()}
    clips = values(one, "mpjpe", MODEL, first).shape[1]
    by_seed = {v: dict(zip(map(str, found.seeds(v)), _seed_means(values(v, "mpjpe")), strict=True)) for v in names}
    return {"clips": clips, "means": means, "differences": differences, "by_seed": by_seed}


def _seed_means(values: np.ndarray) -> list[float | None]:
    return [float(row[~np.isnan(row)].mean()) if (~np.isnan(row)).any() else None for row in values]


def _latents(jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    probes: dict[str, dict[str, list[float]]] = {}
    for job in jobs:
        for one in job["probes"]:
            if one["r2"] is not None:
                probes.setdefault(one["group"], {}).setdefault(one["subject"], []).append(one["r2"])
    last = {name: [job["health"][name] for job in jobs if name in job["health"]] for name in HEALTH}
    return {
        "probes": {group: {s: float(np.mean(r2)) for s, r2 in found.items()} for group, found in probes.items()},
        "health": {name: float(np.mean(values)) for name, values in last.items() if values},
    }


def _cost(jobs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    runs = [[run for name, run in job["cost"].items() if name != "evaluation_s"] for job in jobs]
    seconds = [sum(run["seconds"] for run in of_job) for of_job in runs]
    return {
        "training_s": float(np.mean(seconds)),
        "samples_per_s": float(np.mean([sum(r["samples"] for r in of_job) for of_job in runs]) / np.mean(seconds)),
        "evaluation_s": float(np.mean([job["cost"]["evaluation_s"] for job in jobs])),
    }


def verdict(interval: Mapping[str, float | None]) -> str:
    """In words, of a difference in an error. Raises `UserError` for an interval without limits."""
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        raise UserError("interval", dict(interval), "limits", "It needs two clips at least.")
    return "it helps" if high < 0 else "it hurts" if low > 0 else "no difference is shown"


@dataclass(frozen=True)
class GroundedClaim:
    """What the study says of `grounded` by the rule that was named before it ran."""

    contrasts: Mapping[str, Mapping[str, float | None]]
    """Reference -> interval of grounded's MPJPE minus its, cm."""
    lab: float
    """Of the first contrast, on Lab."""
    claimed: bool
    """Both intervals exclude 0, on the same side; a gain is no claim where Lab loses more than it may."""


def claim(parts: Mapping[str, Any], primary: str) -> GroundedClaim | None:
    """Of `analyse`'s parts at the primary ensemble; None until both contrasts have runs."""
    found = {}
    for reference, _ in CONTRASTS:
        interval = parts[primary]["differences"].get(reference, {}).get("grounded", {}).get("mpjpe")
        if interval is None or interval["low"] is None:
            return None
        found[reference] = interval
    lab = parts["lab"]["differences"][CONTRASTS[0][0]]["grounded"]["mpjpe"]["mean"]
    helps = all(one["high"] < 0 for one in found.values())
    hurts = all(one["low"] > 0 for one in found.values())
    return GroundedClaim(found, lab, hurts or (helps and lab <= LAB_MAY_LOSE))


def gap_closed(means: Mapping[str, Mapping[str, Mapping[str, float]]], variant: str) -> float | None:
    """Share of the way from no_align to all_labelled that a variant goes in MPJPE; None where one of them is missing."""
    if not {variant, "no_align", "all_labelled"} <= means.keys():
        return None
    low, own, high = (means[name]["mpjpe"]["mean"] for name in ("no_align", variant, "all_labelled"))
    return (low - own) / (low - high) if low != high else None
