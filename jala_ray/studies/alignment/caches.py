"""Caches of both manifests: codes, features and first pictures, computed once."""

from __future__ import annotations

import tempfile
from typing import Any

from jala_ray.config import RunConfig
from jala_ray.data.cache.making import Contents, begin
from jala_ray.data.manifest.table import Manifest
from jala_ray.storage import StorageOptions
from jala_ray.studies.alignment.stages import StudyFolder, stage
from jala_ray.training.build import build_assets
from jala_ray.training.parts import do_parts


def make_caches(
    study: StudyFolder, world: dict[str, Any], tokenizer: dict[str, Any], encoder: dict[str, Any]
) -> dict[str, Any]:
    """Of the study's manifest and its twin; the digests of what they hold."""
    settings = {
        "manifest": world["manifest"],
        "twin": world["twin"],
        "tokenizer": tokenizer["sha256"],
        "encoder": encoder["sha256"],
        "image_size": study.size.run.model.backbone.image_size,
    }

    def make() -> dict[str, Any]:
        return {"study": _make(study.base()), "all_labelled": _make(study.base(twin=True))}

    return stage(study.out / "caches.json", settings, make)


def _make(config: RunConfig) -> dict[str, Any]:
    options = StorageOptions()
    with tempfile.TemporaryDirectory() as scratch:
        assets, manifest = build_assets(config, scratch), Manifest(config.data.manifest)
        making = begin(config.data.cache, manifest, assets, config.model.encoder, Contents("all"), options, gpu=True)
    print(config.data.cache, flush=True)
    do_parts(making.missing(), making.job, options, local=True)
    cache, _ = making.finish(0.0)  # every clip was made here: none may be lost
    return {"rows": cache.rows, "index": cache.index}
