"""What an evaluation leaves in its folder: evaluation.json, table.md and report.html."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from jala_ray import storage
from jala_ray.data.manifest.table import Manifest
from jala_ray.evaluation.job import EvaluationJob, Work, reopen
from jala_ray.evaluation.latent_space import latents as latent_space
from jala_ray.evaluation.latent_space.groups import group_rows
from jala_ray.evaluation.latent_space.joint import joint_summary
from jala_ray.evaluation.latent_space.pairs import collect_pairs
from jala_ray.evaluation.predict import FLOOR
from jala_ray.evaluation.records import Evaluation
from jala_ray.evaluation.scores import markdown, score_clips, summarise
from jala_ray.evaluation.texts import score_texts, summarise_texts, text_markdown
from jala_ray.reports.kit.clip_videos import ClipVideo, picked_videos
from jala_ray.reports.motion.descriptions import description_findings, description_page
from jala_ray.reports.motion.inputs import page_latents, page_scores
from jala_ray.reports.motion.page import findings_of, motion_page
from jala_ray.reports.motion.tables import Pick
from jala_ray.storage import StorageOptions
from jala_ray.training import checkpoint
from jala_ray.types import Split, UserError

REPORT, FIGURES, TABLE = "report.html", "evaluation.json", "table.md"


def publish(work: Work, *, latents: bool = True, videos: int = 1, resamples: int = 10_000) -> str:
    """Score, draw and write; returns the report's address. `videos` best, median and worst clips per domain are shown of the first model.

    Raises `UserError` where no clip could be evaluated.
    """
    evaluation = work.finish()
    if work.job.task == "description":
        return _write_texts(work, evaluation, {"resamples": resamples})
    spaces: dict[str, Any] = {"latents": {}, "joint": {}}
    if latents and any(clip.hands for clip in evaluation.clips):
        for label, uri in work.job.checkpoints:
            for name, found in _latents(uri, work, evaluation).items():
                spaces[name][label] = found
    return _write(work, evaluation, spaces, {"videos": videos, "resamples": resamples})


def republish(out: str, options: StorageOptions | None = None) -> str:
    """Write the page of a published evaluation again, from its parts and figures; no model is asked. Returns the report's address."""
    known = json.loads(storage.read_bytes(storage.join(out, FIGURES), options))
    work = reopen(out, options or StorageOptions())
    if missing := work.missing():
        expected = "all parts of the evaluation"
        raise UserError(f"parts of {out}", f"{len(missing)} missing", expected, "Run `jala evaluate` again.")
    settings = {"videos": 3, "resamples": 10_000} | known.get("page", {})
    evaluation = replace(work.finish(), facts=known["facts"])
    if work.job.task == "description":
        return _write_texts(work, evaluation, settings)
    spaces = {name: known.get(name, {}) for name in ("latents", "joint")}
    return _write(work, evaluation, spaces, settings, work.changed())


def _write(
    work: Work, evaluation: Evaluation, spaces: dict[str, Any], settings: dict[str, int], blind: str | None = None
) -> str:
    """All files, from the records, `latents` and `joint` of each checkpoint by its label, and how much is shown; `blind`: why no video."""
    job = work.job
    scores = score_clips(evaluation.clips, evaluation.rows)
    if not scores.clips:
        raise _nothing(evaluation, "no clip has a scored hand")
    models = [label for label, _ in job.checkpoints]
    references = [row for row in evaluation.rows if row not in models]
    pairs = [(models[0], row) for row in (*models[1:], *(row for row in references if not row.startswith(FLOOR)))]
    summary = summarise(scores, pairs, resamples=settings["resamples"])
    shown = page_scores(summary, models, count=settings["videos"])
    made = _videos(job, evaluation, shown["picked"], blind)
    latents, joint = (
        {label: str(space["left_out"]) if "left_out" in space else read(space) for label, space in spaces[name].items()}
        for name, read in (("latents", page_latents), ("joint", dict))
    )
    warnings = [finding.line for finding in findings_of(shown, latents, joint)]
    figures = {"facts": evaluation.facts, "scores": summary.to_json(), **spaces, "page": settings, "warnings": warnings}
    page = motion_page(evaluation, shown, made, latents, joint)
    return _files(work, figures, markdown(summary.groups), page)


def _videos(job: EvaluationJob, evaluation: Evaluation, picked: Sequence[Pick], blind: str | None) -> list[ClipVideo]:
    if blind is None:
        return picked_videos(Manifest(job.manifest, job.options), evaluation, picked)
    print(f"videos left out: {blind}", file=sys.stderr)
    return [ClipVideo(pick["clip_id"], pick["row"], problem=blind) for pick in picked]


def _write_texts(work: Work, evaluation: Evaluation, settings: dict[str, int]) -> str:
    """All files of an evaluation of descriptions."""
    scores = score_texts(evaluation.clips, [label for label, _ in work.job.checkpoints])
    if not scores.clips:
        raise _nothing(evaluation, "no clip has a description")
    summary = summarise_texts(scores, resamples=settings["resamples"])
    found = summary.to_json()
    warnings = [finding.line for finding in description_findings(found)]
    figures = {"facts": evaluation.facts, "scores": found, "page": settings, "warnings": warnings}
    return _files(work, figures, text_markdown(summary), description_page(evaluation, summary))


def _nothing(evaluation: Evaluation, otherwise: str) -> UserError:
    first = next((clip.failure for clip in evaluation.clips if clip.failure), otherwise)
    return UserError("clips evaluated", 0, "at least one", f"The first: {first}")


def _files(work: Work, figures: dict[str, Any], table: str, page: str) -> str:
    out, options = work.job.out, work.job.options
    for name, text in ((FIGURES, json.dumps(figures, indent=1, allow_nan=False)), (TABLE, table), (REPORT, page)):
        storage.write_bytes(storage.join(out, name), text.encode(), options=options)
    return storage.join(out, REPORT)


def warnings_of(out: str, options: StorageOptions | None = None) -> list[str]:
    """The warnings of a published evaluation's page, a line each, the serious ones first."""
    return json.loads(storage.read_bytes(storage.join(out, FIGURES), options))["warnings"]


def _latents(uri: str, work: Work, evaluation: Evaluation) -> dict[str, Any]:
    """`latents.summary` of a checkpoint over the evaluated rows and `joint.joint_summary` over the groups, each or {"left_out": why}."""
    loaded, job = checkpoint.load(uri, work.job.options), work.job
    if job.gpu and torch.cuda.is_available():
        loaded.learner.cuda()
    rows = [clip.row for clip in evaluation.clips if clip.failure is None]
    manifest = Manifest(job.manifest, job.options)
    split = cast("Split", str(manifest.index["split"][evaluation.clips[0].row]))

    def probed() -> dict[str, Any]:
        return latent_space.summary(latent_space.collect(loaded, manifest, job.options, rows=rows))

    def mapped() -> dict[str, Any]:
        pairs = collect_pairs(loaded, manifest, group_rows(manifest, split), job.options, batch=job.batch)
        return joint_summary(pairs, split=split)

    return {"latents": _or_why("latent space", probed), "joint": _or_why("map of h and z", mapped)}


def _or_why(what: str, made: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Too few clips for a probe must not cost the rest of the report."""
    try:
        return made()
    except UserError as error:
        print(f"{what} left out: {error}", file=sys.stderr)
        return {"left_out": str(error)}
