"""The study's motion tokenizer: it sees only the labels that the study's manifest has, whatever runs are later given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from jala_ray.config import StorageConfig, TokenizerRunConfig
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.samples.chunks import ManifestRow, read_chunks
from jala_ray.parsing import to_dict
from jala_ray.studies.alignment.keeping import halve, learned
from jala_ray.studies.alignment.stages import StudyFolder, todays
from jala_ray.studies.alignment.world import validation_rows
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.tokenizer.quality import measure_quality
from jala_ray.training.local import run_local_tokenizer
from jala_ray.types import DOMAINS

ERRORS = ("mpjpe_cm", "wrist_cm", "wrist_rotation_deg", "finger_rotation_deg", "chunks")


def make_tokenizer(study: StudyFolder, world: dict[str, Any]) -> dict[str, Any]:
    """Train it on Lab and the labelled part of Wild; its quality on validation chunks, per domain, is the floor of every model."""
    settings = {"tokenizer": to_dict(study.size.tokenizer), "world": world["plan"]}

    def upgrade(stored: dict[str, Any]) -> dict[str, Any]:
        return stored | {"tokenizer": todays(stored["tokenizer"], TokenizerRunConfig)}

    return learned(study, study.tokenizer, settings, lambda: _make(study), upgrade)


def _make(study: StudyFolder) -> dict[str, Any]:
    manifests = (str(study.manifest),)
    config = replace(study.size.tokenizer, manifests=manifests, storage=StorageConfig(str(study.out)))
    run = run_local_tokenizer(config)
    tokenizer = MotionTokenizer.load(study.out / config.name / "tokenizer")
    halve(tokenizer)
    tokenizer.save(study.tokenizer)
    return {"trained_chunks": len(run.train), "floor": {domain: _floor(study, tokenizer, domain) for domain in DOMAINS}}


def _floor(study: StudyFolder, tokenizer: MotionTokenizer, domain: str) -> dict[str, float]:
    rows = validation_rows(Manifest(study.manifest), domain)
    chunks = read_chunks([ManifestRow(str(study.manifest), int(row)) for row in rows])
    features, side, beta = (torch.from_numpy(chunks[name]) for name in ("features", "side", "beta"))
    quality = measure_quality(tokenizer, features, side, beta=beta)
    return {name: quality[name] for name in ERRORS}
