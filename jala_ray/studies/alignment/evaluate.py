"""What is measured of a finished job: the metrics of every clip that is scored, at E = 4, the latent space, the cost."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jala_ray.config import GenerationConfig, RunConfig
from jala_ray.evaluation.job import EvaluationJob, begin
from jala_ray.evaluation.latent_space import latents
from jala_ray.evaluation.records import Evaluation
from jala_ray.evaluation.scores import BOTH, score_clips
from jala_ray.hands.metrics import METRICS
from jala_ray.rows import load_row
from jala_ray.studies.alignment.keeping import same_clips
from jala_ray.studies.alignment.stages import StudyFolder
from jala_ray.studies.alignment.variants import StudyJob, last_checkpoint
from jala_ray.training import checkpoint, setup
from jala_ray.training.device import best_device
from jala_ray.training.parts import do_parts
from jala_ray.types import UserError

ENSEMBLES = (4,)
MODEL = "model"
"""The row of the evaluated checkpoint; the others are the floor and the trivial baselines."""
HEALTH = ("rho", "effective_rank_z", "effective_rank_h", "cos_matched", "cos_shuffled")
VALIDATED = "val/wild/monitor/"


def evaluate(study: StudyFolder, job: StudyJob, runs: Sequence[RunConfig]) -> dict[str, Any]:
    """Of the last run of a job, small enough to be kept for good.

    ```
    motion  {E: {metric: [score of each clip of `keeping.clips_file`, both hands, null where there is none]}}, {} where none is generated
    probes  [{group, subject, r2}], what is told of the wrist's motion, [] without a latent space
    health  {name of `HEALTH` at validation on Wild: its last value}
    cost    {run: `training_cost`, evaluation_s}
    ```
    """
    config, began = runs[-1], time.monotonic()
    found: dict[str, Any] = {"motion": {}, "probes": [], "health": health(config)}
    if config.objective.generates:
        for ensemble in ENSEMBLES:
            found["motion"][str(ensemble)] = _motion(study, job, config, ensemble)
    if config.objective.aligned_layer is not None:
        found["probes"] = _probes(study, config)
    cost = {Path(run.name).name: training_cost(run) for run in runs}
    return found | {"cost": cost | {"evaluation_s": round(time.monotonic() - began, 1)}}


# --- motion ----------------------------------------------------------------------------------------------------------


def _motion(study: StudyFolder, job: StudyJob, config: RunConfig, ensemble: int) -> dict[str, Any]:
    evaluation = EvaluationJob(
        out=str(study.out / f"{study.apart}evaluations" / job.name / f"E{ensemble}"),
        manifest=str(study.scored),
        checkpoints=((MODEL, last_checkpoint(config)),),
        settings=GenerationConfig(ensemble=ensemble),
        batch=study.size.evaluation_batch,
    )
    work = begin(evaluation, "val", None)
    do_parts(work.missing(), evaluation, evaluation.options, local=True, quiet=True)
    scores = clip_scores(work.finish())
    values = scores["values"].pop(MODEL)
    same_clips(study, scores)
    return values


def clip_scores(evaluation: Evaluation) -> dict[str, Any]:
    """`clips`, `domain`, `source` of every scored clip, and `values` {row: {metric: [score of both hands, null where there is none]}}.

    Raises `UserError` for a clip that failed: runs are compared over the same clips.
    """
    failed = [clip for clip in evaluation.clips if clip.failure is not None]
    if failed:
        raise UserError("validation clips", len(failed), "none that fails", f"{failed[0].clip_id}: {failed[0].failure}")
    scores = score_clips(evaluation.clips, evaluation.rows)
    values = {
        row: {metric: _listed(scores.values[r, :, BOTH, m]) for m, metric in enumerate(METRICS)}
        for r, row in enumerate(scores.rows)
    }
    columns = {name: [getattr(clip, name) for clip in scores.clips] for name in ("clip_id", "domain", "source")}
    return {"clips": columns.pop("clip_id"), **columns, "values": values}


def _listed(values: Iterable[float | None]) -> list[float | None]:
    """Ready for JSON: null where there is no value, or none that is finite; cm to a hundredth of a mm."""
    return [None if value is None or not math.isfinite(value) else round(float(value), 3) for value in values]


# --- the latent space, health and cost -------------------------------------------------------------------------------


def _probes(study: StudyFolder, config: RunConfig) -> list[dict[str, Any]]:
    """Those of `latents.summary` whose target is the wrist, over the clips for tuning: the final ones would take a minute more, and tell
    of no claim."""
    loaded = checkpoint.load(last_checkpoint(config))
    loaded.learner.to(best_device())
    found = latents.summary(latents.collect(loaded, str(study.manifest)))["probes"]
    return [
        {"group": one["group"], "subject": one["subject"], "r2": None if one["r2"] is None else round(one["r2"], 4)}
        for one in found
        if one["target"] == "wrist"
    ]


def _metrics(config: RunConfig) -> list[dict[str, Any]]:
    lines = Path(setup.run_folder(config), "metrics.jsonl").read_text().splitlines()
    return [load_row(line) for line in lines]


def health(config: RunConfig) -> dict[str, float]:
    """The last value of each of `HEALTH` at validation on Wild, of those that the run has."""
    found: dict[str, float] = {}
    for row in _metrics(config):
        values = {name: row.get(VALIDATED + name) for name in HEALTH}
        found |= {n: round(float(v), 4) for n, v in values.items() if v is not None and math.isfinite(v)}
    return found


def training_cost(config: RunConfig) -> dict[str, float]:
    """Seconds of training steps (validation and checkpoints left out), samples, and samples per second."""
    rows = _metrics(config)
    steps = np.diff([0, *(row["step"] for row in rows)])
    seconds = float(np.dot(steps, [row["step_s"] for row in rows]))
    return {
        "seconds": round(seconds, 1),
        "samples": rows[-1]["samples"],
        "samples_per_s": rows[-1]["samples"] / seconds,
    }
