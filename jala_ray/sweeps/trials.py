"""Trials are the real jobs: the launcher of `jobs/pretrain.py` or `jobs/train_tokenizer.py`, in a run folder of the sweep's.

A run folder tells what was done: a trial that was cut off goes on from its newest checkpoint, one that had ended only reports again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

from jala_ray import storage
from jala_ray.config import GenerationConfig, RunConfig, TokenizerRunConfig
from jala_ray.parsing import from_dict, override, to_dict
from jala_ray.rows import load_row
from jala_ray.storage import StorageOptions
from jala_ray.sweeps.driver import FINAL, Report, kept
from jala_ray.sweeps.metrics import PROBE, TrialMetric, motion_metric
from jala_ray.sweeps.spaces import Base
from jala_ray.training import history
from jala_ray.training.setup import run_folder, storage_options
from jala_ray.types import DOMAINS, ConfigError, UserError

RUNS = "runs"
"""Folder of the trials' run folders in the sweep's."""


def steps_of(base: Base) -> int:
    """Optimizer steps of a trial. Raises `ConfigError` where the base counts in epochs."""
    if base.train.steps is None:
        raise ConfigError("train.steps", None, "a number of steps, for rungs to be at", "Pass --train.steps N.")
    return base.train.steps


@dataclass(frozen=True)
class RunTrials:
    """Trials of a base configuration; its name is the sweep's."""

    base: Base
    report_every: int
    """Steps between two validations, each with a checkpoint: a report of what was not committed could not be repeated."""
    metrics: tuple[TrialMetric, ...]
    samples: int | None = None
    """Held-out clips per domain that final metrics are measured on."""
    retries: int = 0
    """Restarts of a trial's workers after a crash; an error of its own comes again."""

    def config(self, number: int, values: Mapping[str, Any]) -> Base:
        every = self.report_every
        often = {"train.checkpoint_every": every, "train.validate_every": every, "train.keep": 1}
        if isinstance(self.base, TokenizerRunConfig):
            often = {"checkpoint_every": every, "train.eval_every": every, "keep": 1}
        fixed = {"name": f"{self.base.name}/{RUNS}/{number:05d}", "cluster.max_failures": self.retries}
        return override(self.base, {**values, **often, **fixed})

    def best(self, values: Mapping[str, Any]) -> Base:
        """What a user runs: the base with the values, under a name of its own."""
        return override(self.base, {**values, "name": f"{self.base.name}-best"})

    def __call__(self, number: int, values: Mapping[str, Any], report: Report) -> None:
        from ray.train import UserCallback
        from ray.tune.integration.ray_train import TuneReportCallback

        from jala_ray.training import launch

        config = self.config(number, values)
        folder, options = run_folder(config), storage_options(config)
        for row in reported(folder, options):
            report(row)
        callbacks: list[UserCallback] = [TuneReportCallback()]
        if not finished(config, folder, options):
            if isinstance(config, TokenizerRunConfig):
                launch.launch_tokenizer(config, callbacks)
            else:
                launch.launch(config, callbacks)
        # Ray may lose a report that comes with the end of a run, so the last one comes again.
        rows = list(reported(folder, options))
        if not rows:
            raise UserError("reports", 0, "at least one validation", "The manifest has no held-out rows (split val).")
        report(rows[-1] | {FINAL + name: value for name, value in self.measured(config, folder, options).items()})

    def measured(self, config: Base, folder: str, options: StorageOptions) -> dict[str, float]:
        """Final metrics that are asked for, measured once."""
        names = [metric.name for metric in self.metrics if metric.final]
        place = storage.join(folder, "final.json")
        if not names:
            return {}
        if not storage.exists(place, options):
            found = _tokenizer(config, folder, options) if isinstance(config, TokenizerRunConfig) else None
            if found is None:
                found = _on_a_worker(cast(RunConfig, config), names, self.samples)
            storage.write_bytes(place, json.dumps(found).encode(), options)
        return json.loads(storage.read_bytes(place, options))


def reported(folder: str, options: StorageOptions) -> Iterator[dict[str, Any]]:
    """What a run has reported up to its newest checkpoint, step by step."""
    from jala_ray.reports.run.folder import lineage

    newest = history.newest(folder, options)
    if newest is None:
        return
    lines = storage.read_bytes(storage.join(folder, "metrics.jsonl"), options).decode().splitlines()
    rows, _ = lineage(list(whole_rows(lines)))
    for row in rows:
        validated = any(name.startswith(("val/", "val_")) for name in row)
        if validated and cast(int, row["step"]) <= history.step_of(newest):
            yield {name: value for name, value in row.items() if kept(name, value)}


def whole_rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Rows of a log; the line that a killed process left half written is behind its last checkpoint, and none of them."""
    for line in lines:
        try:
            yield load_row(line)
        except ValueError:
            continue


def finished(config: Base, folder: str, options: StorageOptions) -> bool:
    if isinstance(config, TokenizerRunConfig):  # its result comes after the last checkpoint
        return storage.is_committed(storage.join(folder, "tokenizer"), options)
    newest = history.newest(folder, options)
    return newest is not None and history.step_of(newest) == config.train.steps


# --- final metrics ---------------------------------------------------------------------------------------------------


def _tokenizer(config: TokenizerRunConfig, folder: str, options: StorageOptions) -> dict[str, float]:
    quality = json.loads(storage.read_bytes(storage.join(folder, "quality.json"), options))
    return {"tokenizer_mpjpe": quality["mpjpe_cm"], "tokens": 2 * config.model.tokens_per_part}


def _on_a_worker(config: RunConfig, names: list[str], samples: int | None) -> dict[str, float]:
    """With the resources of one of the run's workers, which are free again."""
    import ray

    cluster = config.cluster
    task = ray.remote(measure).options(
        num_cpus=cluster.cpus_per_worker,
        num_gpus=cluster.gpus_per_worker,
        scheduling_strategy="DEFAULT",  # not in the trial's own placement group, which holds its waiting process alone
    )
    return ray.get(task.remote(to_dict(config), names, samples))


def measure(stored: dict[str, Any], names: list[str], samples: int | None) -> dict[str, float]:
    """`mpjpe_lab`, `mpjpe_wild` (cm, E = 1; other metrics by the same names) and `probe_h_lab`, `probe_h_wild` of a finished run, as far as
    they are asked for."""
    import torch

    from jala_ray.evaluation.job import EvaluationJob, begin
    from jala_ray.evaluation.latent_space import latents
    from jala_ray.evaluation.scores import BOTH, score_clips
    from jala_ray.hands.metrics import METRICS
    from jala_ray.training import checkpoint
    from jala_ray.training.parts import do_parts

    config = from_dict(RunConfig, stored)
    folder, options = run_folder(config), storage_options(config)
    address, found = history.newest(folder, options), dict[str, float]()
    assert address is not None
    of_motion = {key for key in map(motion_metric, names) if key is not None}
    if of_motion:
        place, settings = storage.join(folder, "evaluation"), GenerationConfig(ensemble=1)
        job = EvaluationJob(place, config.data.manifest, (("model", address),), settings, options=options)
        work = begin(job, "val", samples)
        do_parts(work.missing(), job, options, local=True, quiet=True)
        evaluation = work.finish()
        scores = score_clips(evaluation.clips, evaluation.rows)
        both = scores.values[scores.rows.index("model"), :, BOTH]
        for key, domain in product(sorted(of_motion), DOMAINS):
            of_clips = zip(both[:, list(METRICS).index(key)], scores.clips, strict=True)
            own = [float(e) for e, clip in of_clips if clip.domain == domain and math.isfinite(e)]
            if own:
                found[f"{key}_{domain}"] = sum(own) / len(own)
    if any(name.startswith(PROBE) for name in names):
        loaded = checkpoint.load(address, options)
        loaded.learner.to("cuda" if torch.cuda.is_available() else "cpu")
        for probe in latents.summary(latents.collect(loaded, config.data.manifest, options))["probes"]:
            if probe["subject"] == "h" and probe["target"] == "wrist" and probe["r2"] is not None:
                found[f"{PROBE}_{probe['group']}"] = probe["r2"]
    return found
