"""Doing the runs: each trains in a run folder, is scored on the split val, and leaves `scores/ROW/seed-N.json`."""

from __future__ import annotations

import gc
import math
import sys
from copy import copy
from typing import Any, cast

import numpy as np

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.evaluation.job import EvaluationJob, begin, release
from jala_ray.evaluation.records import Evaluation
from jala_ray.evaluation.scores import BOTH, score_clips
from jala_ray.hands.metrics import METRICS
from jala_ray.parsing import to_dict
from jala_ray.reports.run.folder import lineage
from jala_ray.reports.run.publish import warnings_of
from jala_ray.storage.claims import Claim
from jala_ray.studies.paper.parts import cache_places, make_cache
from jala_ray.studies.paper.plan import PlannedStudy, todays_run
from jala_ray.studies.paper.rows import Row
from jala_ray.training import history, setup
from jala_ray.training.listing import rows_of
from jala_ray.training.parts import TaskSize, do_parts
from jala_ray.types import UserError

MODEL = "model"
"""The evaluated row; the others are the tokenizer's floor and the trivial baselines."""
DIGITS = 6


def scores_of(study: PlannedStudy, row: Row, seed: int) -> dict[str, Any] | None:
    """What a run has left; None: it is not done."""
    return study.read("scores", row.name, f"seed-{seed}.json")


def work(study: PlannedStudy, tokenizer: str) -> None:
    """Do all runs that are not done, in order, each after the cache that it reads; one that was cut off goes on where it was.

    A run that fails with a `UserError` does not stop the others: the first one's is raised at the end. Raises at once what is none, and
    `ConfigError` where a run was done with other settings.
    """
    caches, made, failed = cache_places(study), {""}, list[UserError]()
    every = [(row, seed, study.config(row, seed, tokenizer, caches)) for row, seed in study.runs()]
    waiting = [run for run in every if not done(study, *run)]
    for number, (row, seed, config) in enumerate(waiting, 1):
        print(f"run {number} of {len(waiting)} left: {row.name}, seed {seed}", flush=True)
        try:
            if config.data.cache not in made:
                make_cache(study, config)
                made.add(config.data.cache)
            perform(study, row, seed, config)
        except UserError as error:
            failed.append(copy(error))  # without its frames: they hold a learner, and the next one needs the room
            print(f"failed: {row.name}, seed {seed}: {error}", file=sys.stderr, flush=True)
    if failed:
        raise failed[0]


def perform(study: PlannedStudy, row: Row, seed: int, config: RunConfig) -> None:
    """Train, score, and write down what was found."""
    checkpoint = trained(study, config)
    found = scored(study, row, seed, checkpoint)
    found |= {"checkpoint": checkpoint, "steps": history.step_of(checkpoint), "cost": cost(study, config)}
    found |= {"warnings": warnings_of(setup.run_folder(config), study.options), "config": to_dict(config)}
    study.write(found, "scores", row.name, f"seed-{seed}.json")


def done(study: PlannedStudy, row: Row, seed: int, config: RunConfig) -> bool:
    """Whether a run is trained and scored. Raises `ConfigError` where it was with other settings."""
    name = f"seed-{seed}.json"
    claim = Claim(
        *(study.place("scores", row.name), name, to_dict(config), "run", "Choose another --name."),
        options=study.options,
        hints={name: "Delete it: the run is scored again."},
        free=setup.RESUMABLE,
        under="config",
        upgrade=todays_run,
    )
    return claim.held() is not None


def trained(study: PlannedStudy, config: RunConfig) -> str:
    """Address of the last checkpoint of a run that has made all its steps, after the missing ones were made.

    That it has is written down, for where epochs are counted the folder alone does not say so.
    """
    *_, row, seed = config.name.split("/")
    mark = ("trained", row, f"{seed}.json")
    made = study.read(*mark)
    if made is not None and storage.is_committed(made["checkpoint"], study.options):
        return made["checkpoint"]
    if study.asked.local:
        from jala_ray.training.local import run_local

        gc.collect()  # what cycles hold of a learner that failed makes room for this one
        run_local(config)
        gc.collect()  # and of this one, for the evaluation
    else:
        from jala_ray.training.launch import launch

        launch(config)
    checkpoint = history.resolve(setup.run_folder(config), study.options)
    study.write({"checkpoint": checkpoint}, *mark)
    return checkpoint


def scored(study: PlannedStudy, row: Row, seed: int, checkpoint: str) -> dict[str, Any]:
    """`clips`, `domain` of the scored clips, `values` {row: {metric: [both hands, null where there is none]}}, `failed` {clip: why}."""
    asked, gpus = study.asked, min(1.0, study.base.cluster.gpus_per_worker)
    job = EvaluationJob(
        out=study.place("evaluations", row.name, f"seed-{seed}"),
        manifest=study.base.data.manifest,
        checkpoints=((MODEL, checkpoint),),
        settings=asked.generation,
        batch=asked.batch,
        gpu=asked.local or gpus > 0,
        options=study.options,
    )
    part = begin(job, "val", asked.samples)
    print(f"scores of {row.name}, seed {seed}", flush=True)
    do_parts(
        part.missing(),
        job,
        study.options,
        local=asked.local,
        task=TaskSize(gpus=gpus, autoscaling=study.base.cluster.autoscaling),
    )
    release()
    return clip_scores(part.finish())


def clip_scores(evaluation: Evaluation) -> dict[str, Any]:
    """See `scored`. Raises `UserError` where no clip could be scored."""
    scores = score_clips(evaluation.clips, evaluation.rows)
    failed = {clip.clip_id: clip.failure or "no scored frame" for clip in scores.left_out}
    if not scores.clips:
        raise UserError("clips scored", 0, "at least one", f"The first: {next(iter(failed.items()), 'none')}")
    values = {
        name: {metric: _listed(scores.values[r, :, BOTH, m]) for m, metric in enumerate(METRICS)}
        for r, name in enumerate(scores.rows)
    }
    clips, domain = ([getattr(clip, name) for clip in scores.clips] for name in ("clip_id", "domain"))
    return {"clips": clips, "domain": domain, "values": values, "failed": failed}


def _listed(values: np.ndarray) -> list[float | None]:
    return [round(float(value), DIGITS) if math.isfinite(value) else None for value in values]


def cost(study: PlannedStudy, config: RunConfig) -> dict[str, float]:
    """Measured: hours of training steps (validation and checkpoints left out), samples, samples per second. Of the steps that survived."""
    found, _ = lineage(rows_of(setup.run_folder(config), study.options))
    rows = cast("list[dict[str, Any]]", found)
    steps = np.diff([0, *(row["step"] for row in rows)])
    seconds = float(np.dot(steps, [row.get("step_s") or 0.0 for row in rows]))
    samples = int(rows[-1]["samples"])
    return {"hours": seconds / 3600, "samples": samples, "samples_per_s": samples / seconds if seconds else 0.0}
