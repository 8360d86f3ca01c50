"""The study's motion tokenizer, which learns from a corpus of motion of its own, as a team takes one that others have trained.

The corpus has poses of other clips than the world's, at all targets, and neither words nor pictures: what codes can say is no part of the
question. A tokenizer that knows the study's labels alone was tried first. It cannot say a motion at a hidden target (6.0 cm there, 3.3 at
the others), so that no run could have told one, whatever it had learned from video.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from jala_ray.config import StorageConfig, TokenizerRunConfig
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.samples.chunks import ManifestRow, read_chunks
from jala_ray.data.synthetic import make_clip, plan_world
from jala_ray.parsing import to_dict
from jala_ray.studies.alignment.keeping import halve, learned
from jala_ray.studies.alignment.size import StudySize
from jala_ray.studies.alignment.stages import StudyFolder, todays
from jala_ray.studies.alignment.world import validation_rows
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.tokenizer.quality import measure_quality
from jala_ray.training.local import run_local_tokenizer
from jala_ray.types import DOMAINS

CORPUS_SEED = 10_000
"""Added to the world's."""
ERRORS = ("mpjpe_cm", "wrist_cm", "wrist_rotation_deg", "finger_rotation_deg", "chunks")


def make_tokenizer(study: StudyFolder, world: dict[str, Any]) -> dict[str, Any]:
    """Train it; its quality on validation chunks, per domain, is the floor of every model."""
    settings = {"tokenizer": to_dict(study.size.tokenizer), "world": world["plan"], "corpus": study.size.corpus}

    def upgrade(stored: dict[str, Any]) -> dict[str, Any]:
        return stored | {"tokenizer": todays(stored["tokenizer"], TokenizerRunConfig)}

    return learned(study, study.tokenizer, settings, lambda: _make(study), upgrade)


def _make(study: StudyFolder) -> dict[str, Any]:
    corpus = write_corpus(study.size, study.world.parent / "corpus.parquet")
    config = replace(study.size.tokenizer, manifests=(str(corpus),), storage=StorageConfig(str(study.out)))
    run = run_local_tokenizer(config)
    tokenizer = MotionTokenizer.load(study.out / config.name / "tokenizer")
    halve(tokenizer)
    tokenizer.save(study.tokenizer)
    return {"trained_chunks": len(run.train), "floor": {domain: _floor(study, tokenizer, domain) for domain in DOMAINS}}


def write_corpus(size: StudySize, path: Path) -> Path:
    """As many labelled clips of Lab as of Wild, with motions of a seed of their own. Their videos are not rendered."""
    counts = {"lab_train": size.corpus, "wild_train": size.corpus, "lab_val": 0, "wild_val": 0}
    config = replace(size.world, seed=size.world.seed + CORPUS_SEED, labelled_share=1.0, hidden_targets=0, **counts)
    clips = (make_clip(config, plan, str(path.parent / f"{plan.clip_id}.mp4")) for plan in plan_world(config))
    write_manifest(clips, path)
    return path


def _floor(study: StudyFolder, tokenizer: MotionTokenizer, domain: str) -> dict[str, float]:
    rows = validation_rows(Manifest(study.manifest), domain)
    chunks = read_chunks([ManifestRow(str(study.manifest), int(row)) for row in rows])
    features, side, beta = (torch.from_numpy(chunks[name]) for name in ("features", "side", "beta"))
    quality = measure_quality(tokenizer, features, side, beta=beta)
    return {name: quality[name] for name in ERRORS}
