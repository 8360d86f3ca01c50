"""What a run does before its first step, with or without Ray: folder, assets, plans."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jala_ray import storage
from jala_ray.checks import check
from jala_ray.config import DataConfig, ModelConfig, RunConfig, TokenizerRunConfig
from jala_ray.data.places import Catalogue
from jala_ray.data.plan import Plan
from jala_ray.data.steps import ShareBuilder, StepBuilder
from jala_ray.parsing import diff, from_dict, to_dict
from jala_ray.storage import StorageOptions
from jala_ray.types import DOMAINS, ConfigError, Domain, Split

if TYPE_CHECKING:
    from jala_ray.data.assets import Assets
    from jala_ray.data.source import Source

Rows = Callable[[Split, Domain | None, DataConfig], Catalogue]

VAL_SEED = 1_000_003
"""Added to the run's seed for held-out draws, which are the same at every validation."""

JOB_COPY = "working_dir_files"
"""A folder of this name holds the copies that `ray job submit` runs in."""

AnyRun = TypeVar("AnyRun", RunConfig, TokenizerRunConfig)

RESUMABLE = (
    "cluster.",
    "log.",
    "storage.",
    "data.workers",
    "data.steps_per_block",
    "train.keep",
    "data.min_rows_for_share",
    "data.max_error_share",
)
"""Settings that may change between the attempts of one run, because they don't touch its numbers."""


def storage_options(config: RunConfig | TokenizerRunConfig) -> StorageOptions:
    """How the run's store is reached: all of `config.storage` but its root."""
    stored = config.storage
    return StorageOptions(**{key.name: getattr(stored, key.name) for key in fields(stored) if key.name != "root"})


def run_folder(config: RunConfig | TokenizerRunConfig) -> str:
    """Address of the run's folder."""
    return storage.join(storage.absolute(config.storage.root), config.name)


def absolute(config: AnyRun) -> AnyRun:
    """The configuration with absolute addresses: workers run in other folders than the driver.

    Raises `ConfigError` for a relative `storage.root` in a submitted job, whose folder is a copy that Ray deletes.
    """
    root = config.storage.root
    if storage.is_relative(root) and JOB_COPY in Path.cwd().parts:
        remedy = "A submitted job runs in a copy of the working folder that Ray deletes: pass --storage.root."
        raise ConfigError("storage.root", root, "an absolute folder or an s3:// address", remedy)
    config = replace(config, storage=replace(config.storage, root=storage.absolute(root)))
    if isinstance(config, TokenizerRunConfig):
        return replace(config, manifests=tuple(map(storage.absolute, config.manifests)))
    manifest, cache = storage.absolute(config.data.manifest), storage.absolute(config.data.cache)
    init = None if config.init is None else storage.absolute(config.init)
    return replace(
        config,
        data=replace(config.data, manifest=manifest, cache=cache),
        model=_pretrained_absolute(config.model),
        init=init,
        motion_tokenizer=storage.absolute(config.motion_tokenizer),
    )


def _pretrained_absolute(model: ModelConfig) -> ModelConfig:
    """What is written as a folder is made absolute; a hub's name, `owner/name`, stays."""
    parts = {}
    for part in ("backbone", "encoder", "text"):
        held = getattr(model, part)
        if held.pretrained and held.pretrained.startswith(("~", ".", "file:/")):
            parts[part] = replace(held, pretrained=storage.local_path(held.pretrained))
    return replace(model, **parts)


def prepare(config: RunConfig) -> str:
    """Check the configuration, the storage and what the folder already holds; put the assets there. Returns their address.

    Raises `ConfigError` when the folder belongs to a run with other settings, `StorageError` when it can't be written.
    """
    check(config)
    options, folder = storage_options(config), run_folder(config)
    os.environ.update(storage.worker_env(options))
    storage.probe(folder, options)
    claim(config, folder, options)
    assets = storage.join(folder, "assets")
    if not storage.is_committed(assets, options):
        from jala_ray.training.build import build_assets  # loads transformers, which a continued run does without

        with tempfile.TemporaryDirectory() as scratch:
            build_assets(config, scratch).save(Path(scratch) / "assets")
            storage.upload_dir(Path(scratch) / "assets", assets, options, replace_unfinished=True)
    return assets


def prepare_tokenizer(config: TokenizerRunConfig) -> tuple[str, StorageOptions]:
    """As `prepare`, for a tokenizer's run; returns its folder and the storage's options."""
    if not config.manifests:
        raise ConfigError("manifests", config.manifests, "at least one manifest", "Pass --manifests PATH [PATH ...].")
    options, folder = storage_options(config), run_folder(config)
    os.environ.update(storage.worker_env(options))
    storage.probe(folder, options)
    claim(config, folder, options)
    return folder, options


def claim(config: AnyRun, folder: str, options: StorageOptions) -> None:
    """Write `config.json` first of all, or compare with the one that is there."""
    written = storage.join(folder, "config.json")
    if storage.exists(written, options):
        refuse_other_run(from_dict(type(config), json.loads(storage.read_bytes(written, options))), config, folder)
    else:
        storage.write_bytes(written, json.dumps(to_dict(config), indent=1).encode(), options=options)


def refuse_other_run(old: object, new: object, folder: str) -> None:
    """A run folder continues one run: settings that change its numbers must be the same."""
    changed = {k: v for k, v in diff(old, new).items() if not k.startswith(RESUMABLE)}
    if changed:
        key, (was, now) = next(iter(changed.items()))
        remedy = f"{folder} holds a run with other settings ({', '.join(changed)}). Choose another --name or delete it."
        raise ConfigError(key, now, f"{was!r}, as the run began", remedy)


@dataclass(frozen=True)
class Plans:
    """The training builder and the held-out ones, a domain; numbers of steps."""

    train: StepBuilder
    held_out: dict[str, StepBuilder]
    total_steps: int


def claim_plan(config: RunConfig, plans: Plans) -> None:
    """Write down what the run's epochs consist of, or compare with what they did when it began.

    Raises `ConfigError` where the manifest has changed, or how a mixture's rows are ordered: the rest of an epoch would hold other rows,
    and the run's exactness would be lost.
    """
    options, plan = storage_options(config), plans.train.plan
    written = storage.join(run_folder(config), "plan.json")
    now: dict[str, Any] = {
        "rows": plan.steps.rows,
        "manifest_rows": len(plan.catalogue),
        "digest": plan.catalogue.digest(),
    }
    if plan.counts is not None:
        now["copies"] = "apart"  # they were not, once
    if storage.exists(written, options):
        was = json.loads(storage.read_bytes(written, options))
        if was != now:
            remedy = "The manifest has changed since the run began. Bring it back, or start under another --name."
            if was | {"copies": "apart"} == now:
                remedy = (
                    "That version ordered a mixture's rows otherwise: go on with it, or start under another --name."
                )
            raise ConfigError("data.manifest", now, f"the rows that the run began with, {was}", remedy)
    else:
        storage.write_bytes(written, json.dumps(now, indent=1).encode(), options=options)


def plans(config: RunConfig, assets: str) -> Plans:
    """Plans over `config.data.cache` where there is one, else over the manifest; `assets` is their address."""
    return cache_plans(config, assets) if config.data.cache else manifest_plans(config, assets)


def _plans(config: RunConfig, rows: Rows, opener: Callable[[], tuple[Source, Assets]]) -> Plans:
    batch, seed = config.train.batch, config.seed
    plan = Plan(rows("train", None, config.data), batch, seed, config.data)
    train = StepBuilder(ShareBuilder(config, opener, seed), plan)
    held_out = {}
    for domain in DOMAINS:
        found = rows("val", domain, replace(config.data, labels="all"))
        if len(found):
            # A fixed random part of the held-out rows, in a fixed order.
            alone = DataConfig(window=1)
            chosen = Plan(found, batch, VAL_SEED, alone).order(0)[: config.train.val_samples]
            plan = Plan(found.take(np.sort(chosen)), batch, VAL_SEED, alone, shuffle=False)
            held_out[domain] = StepBuilder(ShareBuilder(config, opener, seed + VAL_SEED), plan)
    epochs = config.train.epochs * train.plan.steps_per_epoch
    return Plans(train, held_out, config.train.steps if config.train.steps is not None else epochs)


def manifest_plans(config: RunConfig, assets: str) -> Plans:
    """Plans over `config.data.manifest`."""
    from jala_ray.data.catalogue import catalogue
    from jala_ray.data.manifest import Manifest
    from jala_ray.data.steps import OpenManifest

    manifest = Manifest(config.data.manifest)

    def rows(split: Split, domain: Domain | None, data: DataConfig) -> Catalogue:
        return catalogue(manifest, data, split, domain)

    return _plans(config, rows, OpenManifest(manifest.base, assets, storage_options(config)))


def cache_plans(config: RunConfig, assets: str) -> Plans:
    """Plans over `config.data.cache`: those of its manifest, without the rows that it lacks.

    Raises `ManifestError` where the cache was made with another tokenizer, encoder, preprocessing or manifest.
    """
    from jala_ray.data.assets import Assets, tokenizer_key
    from jala_ray.data.cache import Cache, CacheIndex
    from jala_ray.data.cache_source import OpenCache
    from jala_ray.models.encoders import encoder_key

    options, features = storage_options(config), config.objective.layout.frames
    cache = Cache.open(config.data.cache, options)
    base, manifest = cache.base, None
    if config.data.manifest:
        from jala_ray.data.cache_making import manifest_key
        from jala_ray.data.manifest import Manifest

        stored = Manifest(config.data.manifest)
        base, manifest = stored.base, manifest_key(stored)
    own = Assets.open(assets, options)
    cache.refuse_stale(
        tokenizer=tokenizer_key(own),
        encoder=encoder_key(config.model.encoder) if features else None,
        image_size=own.spec.image_size,
        manifest=manifest,
    )
    index = CacheIndex.read(cache, options)

    def rows(split: Split, domain: Domain | None, data: DataConfig) -> Catalogue:
        return index.catalogue(cache, data, split, domain)

    return _plans(config, rows, OpenCache(cache, base, assets, options, features))
