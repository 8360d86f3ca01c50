"""What a run does before its first step, with or without Ray: folder, assets, plans."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jala_ray import storage
from jala_ray.config import AnyRun, DataConfig, ModelConfig, RunConfig, TokenizerRunConfig
from jala_ray.config.evaluators import evaluators_of
from jala_ray.data.manifest.places import Catalogue, RowFilter
from jala_ray.data.samples.foresight import foresee
from jala_ray.data.samples.steps import ShareBuilder, StepBuilder
from jala_ray.data.sampling.plan import Plan
from jala_ray.domains import DOMAIN_KINDS
from jala_ray.parsing import from_dict, to_dict
from jala_ray.storage import StorageOptions
from jala_ray.storage.claims import Claim
from jala_ray.training import history, lease
from jala_ray.training.lease import Lease
from jala_ray.types import SPLITS, ConfigError, Split

if TYPE_CHECKING:
    from jala_ray.data.samples.assets import Assets
    from jala_ray.data.samples.chunks import ManifestRows
    from jala_ray.data.samples.source import Source

Rows = Callable[[Split, DataConfig, RowFilter], Catalogue]

VAL_SEED = 1_000_003
"""Added to the run's seed for held-out draws, which are the same at every validation."""

JOB_COPY = "working_dir_files"
"""A folder of this name holds the copies that `ray job submit` runs in."""

Either = TypeVar("Either", RunConfig, TokenizerRunConfig)

RESUMABLE = (
    "cluster.",
    "log.",
    "storage.",
    "data.workers",
    "data.kept_rows_mb",
    "data.steps_per_block",
    "train.keep",
    "train.evaluate",
    "train.generation_",
    "data.min_rows_for_share",
    "data.max_error_share",
    "data.pad_multiple",
    "train.micro_",
    "train.compile",
    "train.parallel",
    "train.reshard",
    "model.backbone.attention",
    "model.backbone.gradient_checkpointing",
)
"""Settings that may change between the attempts of one run, because they don't touch its numbers, but for the order in which they are added
and so their last bits: another GPU may need them.
"""


def storage_options(config: AnyRun) -> StorageOptions:
    """How the run's store is reached: what `config.storage` says of it."""
    known = {key.name for key in fields(StorageOptions)}
    return StorageOptions(**{key: value for key, value in vars(config.storage).items() if key in known})


def run_folder(config: AnyRun) -> str:
    """Address of the run's folder."""
    return storage.join(storage.absolute(config.storage.root), config.name)


def absolute(config: Either) -> Either:
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
    robots = tuple((storage.absolute(address), embodiment) for address, embodiment in config.data.robot_sets)
    init = None if config.init is None else storage.absolute(config.init)
    return replace(
        config,
        data=replace(config.data, manifest=manifest, cache=cache, robot_sets=robots),
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


@dataclass(frozen=True)
class Prepared:
    """A run folder that is this attempt's: held, swept, with the assets and the plans of the run."""

    lease: Lease
    assets: str
    """Their address."""
    plans: Plans


@contextlib.contextmanager
def prepared(config: RunConfig) -> Iterator[Prepared]:
    """The run folder, held by this attempt: configuration, storage and earlier contents are checked, the assets are in it.

    Raises `ConfigError` when another process holds the folder or its run has other settings, `StorageError` when it cannot be written.
    A failure before the first step leaves the name free: only a run with a checkpoint or a logged step is bound to its settings.
    """
    config.check()
    folder, options = run_folder(config), storage_options(config)
    with storage.in_environment(options), claim(config, folder, options) as lease:
        assets = prepare_assets(config, folder, options)
        ready = plans(config, assets)
        for evaluator, _ in evaluators_of(config):
            evaluator.check_data(options)
        if claim_plan(config, ready) and (said := foresee(ready.train)):
            print(said, flush=True)
        yield Prepared(lease, assets, ready)


def prepare_assets(config: RunConfig, folder: str, options: StorageOptions) -> str:
    """Put the assets into the run folder where they are not yet; their address."""
    assets = storage.join(folder, "assets")
    if not storage.is_committed(assets, options):
        from jala_ray.training.build import build_assets  # loads transformers, which a continued run does without

        with storage.scratch("assets") as scratch:
            made = build_assets(config, str(scratch))
            made.save(scratch / "assets")
            if config.objective.signals:
                from jala_ray.training.scales import measured

                made = measured(config, made, plans(config, str(scratch / "assets")))
                made.save(scratch / "assets")
            if config.objective.taught is not None:
                from jala_ray.training.teacher.keep import taught

                taught(config, made, str(scratch / "assets")).save(scratch / "assets")
            storage.upload_dir(scratch / "assets", assets, options, replace_unfinished=True)
    return assets


@dataclass(frozen=True)
class PreparedTokenizer:
    """A tokenizer's run folder that is this attempt's, and the rows whose chunks the run learns."""

    lease: Lease
    rows: dict[Split, ManifestRows]


@contextlib.contextmanager
def prepared_tokenizer(config: TokenizerRunConfig) -> Iterator[PreparedTokenizer]:
    """As `prepared`, for a tokenizer's run."""
    from jala_ray.data.samples.chunks import rows_with_labels

    if not config.manifests:
        raise ConfigError("manifests", config.manifests, "at least one manifest", "Pass --manifests PATH [PATH ...].")
    if config.train.batch < config.cluster.workers:
        expected = f"at least one chunk per worker, >= cluster.workers = {config.cluster.workers}"
        raise ConfigError("train.batch", config.train.batch, expected, "It counts chunks over all workers.")
    options = storage_options(config)
    with storage.in_environment(options), claim(config, run_folder(config), options) as lease:
        rows: dict[Split, ManifestRows] = {
            split: rows_with_labels(config.manifests, split, config.max_chunks, config.seed, options)
            for split in SPLITS
        }
        claim_chunks(config, rows)
        yield PreparedTokenizer(lease, rows)


def claim(config: AnyRun, folder: str, options: StorageOptions) -> Lease:
    """The lease of a run folder, after sweeping it and writing `config.json` or comparing with the one that is there.

    Raises `ConfigError` when another process holds the folder, before anything in it is touched; and when its run began with other
    settings, before any of its checkpoints is deleted.
    """
    held = lease.acquire(folder, options, config.storage.lease_s)
    try:
        storage.probe(folder, options)
        sweep(folder, options)
        write_config(config, folder, options)
        # After the settings were compared: those of another run must not delete this one's checkpoints.
        history.prune(folder, config.keep if isinstance(config, TokenizerRunConfig) else config.train.keep, options)
    except BaseException:
        held.release()
        raise
    return held


def sweep(folder: str, options: StorageOptions) -> None:
    """Remove what attempts that were cut off left behind, and say so."""
    history.settle(folder, options)
    _tell(storage.sweep(folder, options))
    sweep_machine()


def sweep_machine() -> None:
    """Remove the temporary copies that killed processes left on this machine, and say so. Every worker does; the driver sees one."""
    _tell(storage.sweep_scratch())


def _tell(swept: storage.Swept) -> None:
    if swept.names:
        print(f"removed what earlier attempts left behind: {swept}", flush=True)


def begun(folder: str, options: StorageOptions) -> bool:
    """Whether a run has something to lose: a checkpoint or a logged step."""
    if history.folders(folder, options):
        return True
    try:
        return storage.size(storage.join(folder, "metrics.jsonl"), options) > 0
    except storage.MissingFile:
        return False


def write_config(config: AnyRun, folder: str, options: StorageOptions) -> None:
    """`config.json`, unless the run has begun: then its settings must be these."""
    remedy = "Choose another --name or delete it."
    damaged = "Put the config.json of the run's newest checkpoint in its place, or start under another --name."
    claim = Claim(
        folder,
        "config.json",
        to_dict(config),
        "run",
        remedy,
        options,
        free=RESUMABLE,
        upgrade=lambda stored: to_dict(from_dict(type(config), stored)),
        hints={"config.json": damaged},
    )
    if begun(folder, options):
        claim.take()
        return
    # A start that failed may have left them, made with other settings.
    storage.delete_dir(storage.join(folder, "assets"), options)
    storage.delete(storage.join(folder, "plan.json"), options)
    claim.write()


@dataclass(frozen=True)
class Plans:
    """The builder of training steps, those of held-out steps by domain, and the number of training steps."""

    train: StepBuilder
    held_out: dict[str, StepBuilder]
    total_steps: int


def claim_plan(config: RunConfig, plans: Plans) -> bool:
    """Write `plan.json` (number and digest of the rows of an epoch), or compare with the one that is there; whether the run begins now.

    Raises `ConfigError` where the manifest, a robot set, or the order of a mixture's rows has changed since the run began: the rest of an
    epoch would hold other rows, so that some would be trained twice and others never.
    """
    plan = plans.train.plan
    now: dict[str, Any] = {
        "rows": plan.steps.rows,
        "manifest_rows": len(plan.catalogue),
        "digest": plan.catalogue.digest(),
    }
    if plan.counts is not None:
        now["copies"] = "apart"  # they were not, once

    other_order = "That version ordered a mixture's rows otherwise: go on with it, or start under another --name."
    field, changed = ("data.robot_sets", "A robot set") if config.data.robot_sets else ("data.manifest", "The manifest")
    return _rows_of(config, now, field, changed, hints={"copies": other_order}).take()


def claim_chunks(config: TokenizerRunConfig, rows: dict[Split, ManifestRows]) -> None:
    """`claim_plan` of a tokenizer's run, per split. Raises `ConfigError` where the labelled rows have changed since the run began."""
    folder = run_folder(config)
    now = {split: {"rows": len(chosen), "digest": chosen.digest()} for split, chosen in rows.items()}

    def refuse_begun() -> None:
        # Nor does it say how many workers shared a step: batches were each worker's.
        if begun(folder, storage_options(config)):
            remedy = "A version that did not write it down has begun the run: go on with that one, or start under another --name."
            raise ConfigError("plan.json", folder, "a run folder that says which chunks it learns", remedy)

    _rows_of(config, now, "manifests", "A manifest").take(refuse_begun)


def _rows_of(config: AnyRun, now: Mapping[str, Any], field: str, changed: str, **more: Any) -> Claim:
    """`plan.json`: one that says otherwise is refused by the setting `field`."""
    remedy = f"{changed} has changed since the run began. Bring it back, or start under another --name."
    return Claim(run_folder(config), "plan.json", now, "run", remedy, storage_options(config), of=field, **more)


def plans(config: RunConfig, assets: str) -> Plans:
    """Plans over `config.data.robot_sets` or `config.data.cache`, else over the manifest; `assets` is their address."""
    if config.data.robot_sets:
        return robot_plans(config, assets)
    return cache_plans(config, assets) if config.data.cache else manifest_plans(config, assets)


def _plans(config: RunConfig, rows: Rows, opener: Callable[[], tuple[Source, Assets]]) -> Plans:
    batch, seed, signals = config.train.batch, config.seed, config.objective.signals
    plan = Plan(rows("train", config.data, RowFilter(signals=signals)), batch, seed, config.data)
    train = StepBuilder(ShareBuilder(config, opener, seed), plan)
    held_out = {}
    for domain in DOMAIN_KINDS:
        found = rows("val", replace(config.data, labels="all"), RowFilter(domain, signals))
        if len(found):
            # A fixed random part of the held-out rows, in a fixed order.
            alone = DataConfig(window=1)
            chosen = Plan(found, batch, VAL_SEED, alone).order(0)[: config.train.val_samples]
            plan = Plan(found.take(np.sort(chosen)), batch, VAL_SEED, alone, shuffle=False)
            held_out[domain] = StepBuilder(ShareBuilder(config, opener, seed + VAL_SEED, trains=False), plan)
    epochs = config.train.epochs * train.plan.steps_per_epoch
    return Plans(train, held_out, config.train.steps if config.train.steps is not None else epochs)


def manifest_plans(config: RunConfig, assets: str) -> Plans:
    """Plans over `config.data.manifest`."""
    from jala_ray.data.manifest.table import Manifest
    from jala_ray.data.samples.steps import OpenManifest
    from jala_ray.data.sampling.catalogue import catalogue

    options = storage_options(config)
    manifest = Manifest(config.data.manifest, options)

    def rows(split: Split, data: DataConfig, wanted: RowFilter) -> Catalogue:
        return catalogue(manifest, data, split, wanted)

    return _plans(config, rows, OpenManifest(manifest.base, assets, options))


def cache_plans(config: RunConfig, assets: str) -> Plans:
    """Plans over `config.data.cache`: those of its manifest, without the rows that it lacks.

    Raises `ManifestError` where the cache was made with another tokenizer, encoder, preprocessing or manifest.
    """
    from jala_ray.data.cache.folder import Cache, CacheIndex
    from jala_ray.data.cache.source import OpenCache
    from jala_ray.data.samples.assets import Assets, tokenizer_key
    from jala_ray.models.frame_encoder import encoder_key

    options, layout = storage_options(config), config.objective.layout
    cache = Cache.open(config.data.cache, options)
    base, manifest = cache.base, None
    if config.data.manifest:
        from jala_ray.data.cache.making import manifest_key
        from jala_ray.data.manifest.table import Manifest

        stored = Manifest(config.data.manifest, options)
        base, manifest = stored.base, manifest_key(stored)
    own = Assets.open(assets, options)
    cache.refuse_stale(
        tokenizer=tokenizer_key(own),
        encoder=encoder_key(config.model.encoder) if layout.frames else None,
        image_size=own.spec.image_size,
        manifest=manifest,
    )
    index = CacheIndex.read(cache, options)

    def rows(split: Split, data: DataConfig, wanted: RowFilter) -> Catalogue:
        return index.catalogue(cache, data, split, wanted)

    return _plans(config, rows, OpenCache(cache, base, assets, options, layout.frames, layout.pixels))


def robot_plans(config: RunConfig, assets: str) -> Plans:
    """Plans over the frames of `config.data.robot_sets`. Raises `ConfigError` for a set without a signal that the objective reads."""
    from jala_ray.data.robots.plan import robot_catalogue
    from jala_ray.data.robots.sets import open_sets
    from jala_ray.data.robots.source import OpenRobots

    options, given = storage_options(config), config.data.robot_sets
    sets = open_sets(given, options)

    def rows(split: Split, data: DataConfig, wanted: RowFilter) -> Catalogue:
        return robot_catalogue(sets, data, split, wanted)

    kept = config.data.kept_rows_mb * 2**20
    return _plans(config, rows, OpenRobots(given, sets.digest, assets, options, config.objective.signals, kept))
