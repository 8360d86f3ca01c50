"""What an evaluation leaves in its folder: evaluation.json, table.md and report.html."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from jala_ray import storage
from jala_ray.data.manifest.table import Manifest
from jala_ray.evaluation.job import Work
from jala_ray.evaluation.latent_space import latents as latent_space
from jala_ray.evaluation.predict import FLOOR
from jala_ray.evaluation.records import Evaluation
from jala_ray.evaluation.scores import markdown, score_clips, summarise
from jala_ray.reports.kit.clip_videos import picked_videos
from jala_ray.reports.motion.inputs import page_latents, page_scores
from jala_ray.reports.motion.page import findings_of, motion_page
from jala_ray.storage import StorageOptions
from jala_ray.training import checkpoint
from jala_ray.types import UserError

REPORT, FIGURES, TABLE = "report.html", "evaluation.json", "table.md"


def publish(work: Work, *, latents: bool = True, videos: int = 1, resamples: int = 10_000) -> str:
    """Score, draw and write; returns the report's address. `videos` best, median and worst clips a domain are shown of the first model.

    Raises `UserError` where no clip could be evaluated.
    """
    job, evaluation = work.job, work.finish()
    scores = score_clips(evaluation.clips, evaluation.rows)
    if not scores.clips:
        first = next((clip.failure for clip in evaluation.clips if clip.failure), "no clip has a scored hand")
        raise UserError("clips evaluated", 0, "at least one", f"The first: {first}")
    models = [label for label, _ in job.checkpoints]
    references = [row for row in evaluation.rows if row not in models]
    pairs = [(models[0], row) for row in (*models[1:], *(row for row in references if not row.startswith(FLOOR)))]
    summary = summarise(scores, pairs, resamples=resamples)
    figures: dict[str, Any] = {"facts": evaluation.facts, "scores": summary.to_json(), "latents": {}}
    if latents:
        figures["latents"] = {label: _latents(uri, work, evaluation) for label, uri in job.checkpoints}
    manifest = Manifest(job.manifest, job.options)
    shown = page_scores(summary, models, count=videos)
    made = picked_videos(manifest, evaluation, shown["picked"])
    spaces = {
        label: page_latents(space) if "probes" in space else str(space["left_out"])
        for label, space in figures["latents"].items()
    }
    figures["warnings"] = [finding.line for finding in findings_of(shown, spaces)]
    page = motion_page(evaluation, shown, made, spaces)
    written = {
        FIGURES: json.dumps(figures, indent=1, allow_nan=False),
        TABLE: markdown(summary.groups),
        REPORT: page,
    }
    for name, text in written.items():
        storage.write_bytes(storage.join(job.out, name), text.encode(), options=job.options)
    return storage.join(job.out, REPORT)


def warnings_of(out: str, options: StorageOptions | None = None) -> list[str]:
    """The warnings of a published evaluation's page, a line each, the serious ones first."""
    return json.loads(storage.read_bytes(storage.join(out, FIGURES), options))["warnings"]


def _latents(uri: str, work: Work, evaluation: Evaluation) -> dict[str, Any]:
    """`latents.summary` of a checkpoint over the evaluated rows, or {"left_out": why}."""
    loaded = checkpoint.load(uri, work.job.options)
    if work.job.gpu and torch.cuda.is_available():
        loaded.learner.cuda()
    rows = [clip.row for clip in evaluation.clips if clip.failure is None]
    try:
        return latent_space.summary(latent_space.collect(loaded, work.job.manifest, work.job.options, rows=rows))
    except UserError as error:  # too few clips for a probe must not cost the rest of the report
        print(f"latent space left out: {error}", file=sys.stderr)
        return {"left_out": str(error)}
