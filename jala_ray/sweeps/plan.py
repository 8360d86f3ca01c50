"""From a command line to a sweep: what is refused before anything starts, the claim of the folder, the shared cache."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.parsing import from_dict, override, to_dict
from jala_ray.presets import configuration, tokenizer_configuration
from jala_ray.storage import StorageOptions
from jala_ray.storage.claims import Claim
from jala_ray.sweeps.domains import Domain
from jala_ray.sweeps.driver import Sweep
from jala_ray.sweeps.halving import Halving
from jala_ray.sweeps.metrics import TrialMetric, choose, halving_metric
from jala_ray.sweeps.search import Strategy
from jala_ray.sweeps.spaces import METHODS, SET_BY_SWEEPS, Base, bind, load, verify
from jala_ray.sweeps.trials import RunTrials, steps_of
from jala_ray.training.setup import RESUMABLE, absolute, run_folder, storage_options
from jala_ray.types import ConfigError

__all__ = ["METHODS", "PlannedSweep", "SweepRequest", "plan_sweep"]

CACHED = ("model.encoder.", "motion_tokenizer", "model.backbone.image_size", "data.manifest", "data.cache")
"""Settings that a cache depends on: searching one, trials cannot share it."""
READING_CPUS = 1.0
"""Left free for Ray Data's tasks, or trials would wait for one another for ever."""


@dataclass(frozen=True)
class SweepRequest:
    """The command line, see `commands/sweep.py`."""

    preset: str
    settings: tuple[str, ...]
    space: Sequence[str]
    trials: int
    search: Any
    search_seed: int = 0
    grid_points: int = 3
    metric: Sequence[str] = ()
    scheduler: str = "asha"
    factor: int = 3
    report_every: int | None = None
    synchronous: bool = False
    concurrent: int | None = None
    samples: int | None = None
    retries: int = 0
    no_cache: bool = False
    resume: bool = False
    like: str | None = None
    gpu_hour_price: float | None = None


@dataclass(frozen=True)
class PlannedSweep:
    """A checked sweep that has not begun."""

    base: Base
    domains: Mapping[str, Domain]
    metrics: tuple[TrialMetric, ...]
    strategy: Strategy
    halving: Halving | None
    report_every: int
    concurrent: int | None
    waves: bool
    samples: int | None
    retries: int
    shares_cache: bool
    options: StorageOptions = field(default_factory=StorageOptions)

    @property
    def folder(self) -> str:
        return run_folder(self.base)

    @property
    def steps(self) -> int:
        return steps_of(self.base)

    def claim(self) -> dict[str, Any]:
        """What of the sweep may not change while it lasts. More trials may be added later."""
        fixed = {k: v for k, v in dataclasses.asdict(self.strategy).items() if k != "trials"}
        halving = (
            None if self.halving is None else dataclasses.asdict(self.halving) | {"metric": self.halving.metric.name}
        )
        found = {
            "base": to_dict(self.base),
            "space": {key: domain.to_json() for key, domain in self.domains.items()},
            "metrics": [metric.name for metric in self.metrics],
            "search": fixed,
            "halving": halving,
            "report_every": self.report_every,
            "samples": self.samples,
            "wave": self.concurrent if self.waves else None,
            "cache": self.shares_cache,
        }
        return json.loads(json.dumps(found))

    def claimed(self, resume: bool) -> PlannedSweep:
        """Take the folder, or go on in it; then the number of trials at a time, and the cache, are settled.

        Raises `ConfigError` where the folder holds a sweep and `resume` is not asked for, or a sweep with other settings.
        """
        plan = dataclasses.replace(self, concurrent=self._fitting())
        plan._refuse_nothing_held_out()
        storage.probe(plan.folder, plan.options)
        plan.take(resume)
        return plan._cached()

    def take(self, resume: bool) -> None:
        """Write `sweep.json`, or compare with the one that is there."""

        def refuse_none() -> None:
            if resume:
                raise ConfigError("--resume", self.folder, "a folder that a sweep has begun in", "Leave --resume out.")

        def todays(stored: dict[str, Any]) -> dict[str, Any]:
            return stored | {"base": to_dict(from_dict(type(self.base), stored["base"]))}

        how: dict[str, Any] = {"free": tuple(f"base.{key}" for key in RESUMABLE), "upgrade": todays}
        claim = Claim(self.folder, "sweep.json", self.claim(), "sweep", "Choose another --name.", self.options, **how)
        if not (claim.take(refuse_none) or resume):
            remedy = "Add --resume to continue it, or choose another --name."
            raise ConfigError("name", self.folder, "a folder without a sweep", remedy)

    def _fitting(self) -> int:
        """Trials at a time: as asked, or as many as the cluster holds beside Ray Data's tasks. Raises `ConfigError` for more than fit."""
        import ray

        cluster = self.base.cluster
        if cluster.autoscaling:
            if self.concurrent is None:
                remedy = "Pass --concurrent N: a cluster that grows on demand does not say how far."
                raise ConfigError("--concurrent", None, "a number", remedy)
            return self.concurrent
        there = ray.cluster_resources()
        cpus, own = there.get("CPU", 0.0), cluster.workers * cluster.cpus_per_worker
        fits = int((cpus - READING_CPUS) / own + 1e-6) if own else max(1, self.concurrent or 1)
        if cluster.gpus_per_worker:
            gpus = cluster.workers * cluster.gpus_per_worker
            fits = min(fits, int(there.get("GPU", 0.0) / gpus + 1e-6))
        if fits < max(1, self.concurrent or 1):
            arithmetic = (
                f"at most {fits}: a trial takes {own:g} of {cpus:g} CPUs and {cluster.workers * cluster.gpus_per_worker:g} of "
                f"{there.get('GPU', 0.0):g} GPUs, and {READING_CPUS:g} CPU is for reading"
            )
            remedy = "Set --cluster.workers, --cluster.cpus-per-worker or --concurrent lower."
            raise ConfigError("--concurrent", self.concurrent or 1, arithmetic, remedy)
        return self.concurrent or fits

    def _refuse_nothing_held_out(self) -> None:
        """Trials would run to their end and then have nothing to be compared by. Raises `ConfigError`."""
        base = self.base
        if not isinstance(base, RunConfig) or not base.data.manifest:
            return
        from jala_ray.data.manifest.table import Manifest
        from jala_ray.data.sampling.catalogue import equals

        index = Manifest(base.data.manifest, self.options).index
        held_out = np.unique(index["domain"].to_numpy()[equals(index["split"], "val")]).tolist()
        for metric in self.metrics:
            if not any(domain in key for key in metric.keys for domain in held_out):
                expected = f"held-out clips (split val) of a domain that {metric.name} is measured on"
                raise ConfigError("data.manifest", base.data.manifest, expected, f"It has some of: {sorted(held_out)}.")

    def _cached(self) -> PlannedSweep:
        """With a cache of the manifest that all trials read, made where it is missing."""
        base = self.base
        if not self.shares_cache or not isinstance(base, RunConfig):
            return self
        from jala_ray.data.cache.making import Contents, begin
        from jala_ray.data.manifest.table import Manifest
        from jala_ray.training.build import build_assets
        from jala_ray.training.parts import TaskSize, do_parts

        place, gpus = storage.join(self.folder, "cache"), base.cluster.gpus_per_worker
        with storage.scratch("assets") as scratch:
            assets, manifest = build_assets(base, scratch), Manifest(base.data.manifest, self.options)
            encoder, contents = base.model.encoder, Contents("all")
            making = begin(place, manifest, assets, encoder, contents, self.options, gpu=gpus > 0)
        print(f"cache for all trials: {making.job.cache.path}", flush=True)
        do_parts(making.missing(), making.job, self.options, local=False, task=TaskSize(gpus=gpus))
        cache, _ = making.finish(base.data.max_error_share)
        return dataclasses.replace(self, base=override(base, {"data.cache": cache.path}))

    def sweep(self) -> Sweep:
        """Ready for `driver.run`. `claimed` comes before."""
        assert self.concurrent is not None
        trials = RunTrials(self.base, self.report_every, self.metrics, self.samples, self.retries)
        return Sweep(
            folder=self.folder,
            options=self.options,
            trials=trials,
            domains=self.domains,
            metrics=self.metrics,
            strategy=self.strategy,
            halving=self.halving,
            concurrent=self.concurrent,
            waves=self.waves,
            retries=self.retries,
        )


def plan_sweep(asked: SweepRequest) -> PlannedSweep:
    """Check everything that can be checked. Raises `ConfigError`."""
    for name in ("trials", "grid_points"):
        _positive(name, getattr(asked, name))
    for name in ("concurrent", "samples", "report_every"):
        if getattr(asked, name) is not None:
            _positive(name, getattr(asked, name))
    if asked.retries < 0:
        raise ConfigError("--retries", asked.retries, "an integer >= 0")
    tokenizer = list(asked.space) == ["tokenizer"]
    words = [asked.preset, *asked.settings]
    base: Base = absolute(tokenizer_configuration(words)) if tokenizer else absolute(configuration(words))
    verify(base)
    given = [w.removeprefix("--").split("=")[0].replace("-", "_") for w in asked.settings if w.startswith("--")]
    for key in (key for key in given if key in SET_BY_SWEEPS):
        raise ConfigError(f"--{key}", None, f"to be left out: in a sweep {SET_BY_SWEEPS[key]} says so")
    domains = bind(load(asked.space), base, given)
    metrics = choose(asked.metric, base, domains)
    if any(m.final for m in metrics) and isinstance(base, RunConfig) and not base.data.manifest:
        remedy = "A cache has no poses to compare with: pass --data.manifest too."
        raise ConfigError("data.manifest", "", "a manifest, for metrics of a trial's end", remedy)
    strategy = Strategy(asked.search, asked.search_seed, asked.trials, asked.grid_points)
    strategy.check(domains)
    steps = steps_of(base)
    every = asked.report_every or math.ceil(steps / 9)  # rungs at a ninth and a third
    if every > steps:
        raise ConfigError("--report-every", every, f"at most the {steps} steps of a trial")
    shown = halving_metric(metrics, base, domains)
    halving = None
    if asked.scheduler == "asha" and len(metrics) == 1 and shown is not None:
        halving = Halving(shown, every, steps, asked.factor)
    if asked.synchronous and asked.concurrent is None:
        remedy = "Waves of another size would be another sweep: pass --concurrent N."
        raise ConfigError("--concurrent", None, "a number, with --synchronous", remedy)
    shares = isinstance(base, RunConfig) and not base.data.cache and not asked.no_cache
    shares = shares and not any(key.startswith(CACHED) for key in domains)
    if shares and base.cluster.autoscaling:
        remedy = "Make one with `jala cache` and pass --data.cache, or pass --no-cache."
        raise ConfigError("data.cache", "", "a cache: where nodes come on demand it is not made in passing", remedy)
    return PlannedSweep(
        base=base,
        domains=domains,
        metrics=metrics,
        strategy=strategy,
        halving=halving,
        report_every=every,
        concurrent=asked.concurrent,
        waves=asked.synchronous,
        samples=asked.samples,
        retries=asked.retries,
        shares_cache=shares,
        options=storage_options(base),
    )


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"--{name.replace('_', '-')}", value, "an integer >= 1")
