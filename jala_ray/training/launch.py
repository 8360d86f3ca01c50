"""Ray Train runs the loop. Beside `cluster.py`, `exported.py`, `pools.py`, `preemption.py` and `worker_setup.py` the only file of this room
that knows Ray."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow.fs
import ray
import ray.data
import ray.train
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.train import UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from jala_ray import storage
from jala_ray.config import ClusterConfig, RunConfig, TokenizerRunConfig
from jala_ray.data.pipeline import (
    Segment,
    UnitConfig,
    begins_with,
    cause_of,
    chunk_arrays,
    read_shares,
    work_through,
)
from jala_ray.data.samples.share import StepShare
from jala_ray.data.samples.steps import StepBuilder
from jala_ray.parsing import from_dict, to_dict
from jala_ray.storage import StorageOptions
from jala_ray.training import history, pools, preemption
from jala_ray.training.cluster import watch_cluster
from jala_ray.training.exported import noting, run_gauges
from jala_ray.training.interrupts import before_last_line, interrupts_given_back
from jala_ray.training.lease import successor
from jala_ray.training.parts import TaskSize
from jala_ray.training.provenance import for_tasks
from jala_ray.training.watch import PATIENCE_S
from jala_ray.training.worker_setup import know_own_cluster
from jala_ray.types import DamagedCheckpoint

T = TypeVar("T")

TRAIN = "train"
REPORTS = str(Path(ray.train.__file__).parent / "v2/_internal/execution/context.py")
"""The logger of Ray Train 2.60 that bears its module's file as its name."""
RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of checkpoints in a run folder."""


@dataclass(frozen=True)
class RunSegment:
    """The part of the training plan that is still to be done, asked for whenever a worker group starts; once, for all its ranks."""

    builder: StepBuilder
    folder: str
    total_steps: int
    options: StorageOptions

    def __call__(self) -> Segment:
        done = history.newest(self.folder, self.options)
        first = history.step_of(done) if done is not None else 0
        return Segment(self.builder, first, self.total_steps, self.builder.builder.config.data.steps_per_block, done)


def launch(config: RunConfig, callbacks: Sequence[UserCallback] = ()) -> ray.train.Result:
    """Run a pretraining configuration on the connected Ray cluster; returns Ray's result after the last step.

    A run folder that already holds checkpoints is continued. `callbacks` hear of every checkpoint, with the metrics so far.
    Raises `ConfigError` for what cannot work on this cluster.
    """
    from jala_ray.training import setup

    config = setup.absolute(config)
    ensure_ray(setup.storage_options(config), waiting_s=config.log.waiting_s)
    pools.check_fits(config.cluster, pools.places())
    folder, options = setup.run_folder(config), setup.storage_options(config)
    with setup.prepared(config) as ready:
        plans = ready.plans
        segment = RunSegment(plans.train, folder, plans.total_steps, options)
        payload = {
            "config": to_dict(config),
            "owner": ready.lease.held.owner,
            "assets": ready.assets,
            "total_steps": plans.total_steps,
            "steps_per_epoch": plans.train.plan.steps_per_epoch,
            "held_out": plans.held_out,
        }
        return fit(
            train_worker,
            payload,
            config.cluster,
            folder,
            options,
            segment=segment,
            callbacks=callbacks,
        )


def launch_tokenizer(config: TokenizerRunConfig, callbacks: Sequence[UserCallback] = ()) -> ray.train.Result:
    """Train a motion tokenizer on the connected cluster; a run folder with checkpoints is continued."""
    from jala_ray.training import setup

    config = setup.absolute(config)
    ensure_ray(setup.storage_options(config), waiting_s=config.log.waiting_s)
    pools.check_fits(config.cluster, pools.places())
    folder, options = setup.run_folder(config), setup.storage_options(config)
    with setup.prepared_tokenizer(config) as ready:
        arrays = {split: ray.put(chunk_arrays(rows, pools.cpu_selector())) for split, rows in ready.rows.items()}
        payload = {"config": to_dict(config), "owner": ready.lease.held.owner, "arrays": arrays}
        return fit(tokenizer_worker, payload, config.cluster, folder, options, callbacks=callbacks)


def fit(
    worker: Any,
    payload: dict[str, Any],
    cluster: ClusterConfig,
    folder: str,
    options: StorageOptions,
    *,
    segment: Callable[[], Segment] | None = None,
    callbacks: Sequence[UserCallback] = (),
) -> ray.train.Result:
    """`TorchTrainer` over `worker(payload)`, its state in the run folder `folder`. With a `segment` its workers read their shares of that.

    Crashes are restarted (`cluster.max_failures`). A `JalaError` of a worker would come again, so it ends the run at once and is raised as
    it is; but a damaged checkpoint is set aside, and the run goes on from the one before. Raises Ray's error for all others.
    """
    while True:
        try:
            with interrupts_given_back():
                return trainer(worker, payload, cluster, folder, options, segment, callbacks).fit()
        except ray.train.TrainingFailedError as error:
            cause = cause_of(error)
            if cause is None:
                raise
            if not isinstance(cause, DamagedCheckpoint):
                raise cause from error
            print(cause, flush=True)


class EndOnExplained(UserCallback):
    """Passes on what a worker's error explains, in Ray's controller, which then starts no other group of workers."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if (cause := cause_of(error)) is not None:
                raise cause


def trainer(
    worker: Any,
    payload: dict[str, Any],
    cluster: ClusterConfig,
    folder: str,
    options: StorageOptions,
    segment: Callable[[], Segment] | None,
    callbacks: Sequence[UserCallback],
) -> TorchTrainer:
    """Ray's trainer of one attempt.

    Which checkpoints exist is read from the folder (`history`). Ray's own list of them, from an earlier attempt, is deleted first: Ray
    refuses a folder that lacks a checkpoint of its list.
    """
    storage.delete(storage.join(folder, RAY_SNAPSHOT), options)
    filesystem, path = storage.filesystem(folder, options)
    root, _, name = path.rstrip("/").rpartition("/")
    return TorchTrainer(
        worker,
        train_loop_config=payload
        | {"filesystem": filesystem},  # Ray takes a checkpoint for the run's on an equal one alone
        scaling_config=preemption.scaling(cluster, pools.worker_selector(cluster, pools.places())),
        torch_config=TorchConfig(backend="nccl" if cluster.gpus_per_worker else "gloo"),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=root,
            storage_filesystem=filesystem,
            failure_config=preemption.failures(cluster),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=None),  # the loop deletes old ones
            callbacks=[EndOnExplained(), cast(UserCallback, preemption.SavesBeforeResize()), *callbacks],
            worker_runtime_env={"env_vars": storage.worker_env(options) | {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}},
        ),
        datasets={TRAIN: placeholder} if segment is not None else None,
        dataset_config=UnitConfig({TRAIN: segment}, pools.cpu_selector(), cluster.reading_cpus)
        if segment is not None
        else None,
    )


def placeholder() -> ray.data.Dataset:
    """Names a dataset; `UnitConfig` builds what it stands for."""
    return ray.data.range(1)


@preemption.started_again()
def train_worker(payload: dict[str, Any]) -> None:
    """One rank of the run."""
    # Imported here: the controller unpickles this module too, and needs no model code.
    from jala_ray.data.samples.assets import Assets
    from jala_ray.training import setup
    from jala_ray.training.build import build_learner, make_deterministic
    from jala_ray.training.parallel import parallel
    from jala_ray.training.pretraining import Pretraining
    from jala_ray.training.trainer import train

    setup.sweep_machine()
    quiet_reports()
    config = from_dict(RunConfig, payload["config"])
    context = ray.train.get_context()
    rank, world, device = context.get_world_rank(), context.get_world_size(), get_device()
    folder, options = setup.run_folder(config), setup.storage_options(config)
    assets = Assets.open(payload["assets"], options)
    lease = successor(folder, payload["owner"], options, config.storage.lease_s) if rank == 0 else None
    every = (config.train.log_every, config.train.checkpoint_every)
    gauges = run_gauges(config, payload["total_steps"], *every) if rank == 0 else None
    if config.train.deterministic:
        make_deterministic()
    learner = build_learner(config, assets).to(device)

    shard = ray.train.get_dataset_shard(TRAIN)
    assert shard is not None

    def shares(first: int) -> Iterator[StepShare]:
        return read_shares(shard, first, payload["total_steps"], rank)

    def held_out(builder: StepBuilder) -> Iterator[StepShare]:
        # Few rows, read once: a rank reads its own faster than Ray Data would start.
        return builder.stream(range(builder.plan.steps_per_epoch), rank, world)

    train(
        Pretraining(
            config=config,
            folder=folder,
            learner=learner,
            assets=assets,
            device=device,
            total_steps=payload["total_steps"],
            steps_per_epoch=payload["steps_per_epoch"],
            shares=shares,
            validation={domain: functools.partial(held_out, b) for domain, b in payload["held_out"].items()},
            resume_from=begins_with(shard),
            rank=rank,
            world=world,
            lease=lease,
            committed=noting(reporter(payload["filesystem"], rank), gauges),
            publish=gauges.row if gauges is not None else None,
            noticed=preemption.noticed,
            parallel=parallel(config.train, world, device),
        )
    )


def quiet_reports() -> None:
    """Ray Train writes every checkpoint's metrics into the job's log, a line of thousands of characters per rank; ours has them."""
    logging.getLogger(REPORTS).setLevel(logging.WARNING)


@preemption.started_again()
def tokenizer_worker(payload: dict[str, Any]) -> None:
    """One rank of a tokenizer run."""
    import numpy as np

    from jala_ray.training import setup
    from jala_ray.training.parallel import Alone, Ddp
    from jala_ray.training.tokenizer import Chunks, TokenizerRun, train_tokenizer

    setup.sweep_machine()
    quiet_reports()
    config = from_dict(TokenizerRunConfig, payload["config"])
    context = ray.train.get_context()
    rank, world, device = context.get_world_rank(), context.get_world_size(), get_device()
    folder, options = setup.run_folder(config), setup.storage_options(config)
    lease = successor(folder, payload["owner"], options, config.storage.lease_s) if rank == 0 else None
    every = (config.train.log_every, config.checkpoint_every)
    gauges = run_gauges(config, config.train.steps, *every) if rank == 0 else None
    stored: dict[str, dict[str, np.ndarray]] = {split: ray.get(ref) for split, ref in payload["arrays"].items()}
    # A copy a worker: torch refuses Ray's read-only shared memory.
    arrays = {split: {k: np.array(v) for k, v in parts.items()} for split, parts in stored.items()}
    train_tokenizer(
        TokenizerRun(
            config=config,
            folder=folder,
            train=Chunks(**arrays["train"]),
            held_out=Chunks(**arrays["val"]),
            device=device,
            rank=rank,
            world=world,
            lease=lease,
            committed=noting(reporter(payload["filesystem"], rank), gauges),
            publish=gauges.row if gauges is not None else None,
            noticed=preemption.noticed,
            parallel=Ddp(device) if world > 1 else Alone(),
        )
    )


def reporter(filesystem: pyarrow.fs.FileSystem, rank: int) -> Callable[[dict[str, Any], str], None]:
    """Tell Ray Train of a checkpoint that is in its place, verified and committed."""

    def committed(metrics: dict[str, Any], address: str) -> None:
        path = address.removeprefix("s3://")  # as the file system has it; addresses of runs are absolute
        ray.train.report(
            {k: v for k, v in metrics.items() if isinstance(v, (int, float))},
            checkpoint=ray.train.Checkpoint(path, filesystem=filesystem) if rank == 0 else None,
            checkpoint_dir_name=path.rpartition("/")[2],
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )

    return committed


def ensure_ray(
    options: StorageOptions, environment: Mapping[str, str] | None = None, waiting_s: float = PATIENCE_S
) -> None:
    """Connect to the cluster of `RAY_ADDRESS` or of the submitted job; start a local Ray where there is none.

    All tasks of the job reach the object store as the driver does (an endpoint, no secrets), with `environment` beside, and know which
    cluster is theirs. From then on the driver says what could not be placed for `waiting_s`.
    """
    if not ray.is_initialized():
        wanted = {**storage.worker_env(options), **for_tasks(), **(environment or {})}
        # Ray refuses a variable that the submitted job's own environment sets too; tasks inherit that one.
        missing = {k: v for k, v in wanted.items() if k not in submitted_environment()}
        setup = f"{know_own_cluster.__module__}.{know_own_cluster.__name__}"
        ray.init(log_to_driver=True, runtime_env={"env_vars": missing, "worker_process_setup_hook": setup})
        before_last_line(ray.shutdown)  # prints what its workers have said
    watch_cluster(waiting_s)


def submitted_environment() -> Mapping[str, str]:
    """Environment variables that `ray job submit --runtime-env` gave this job and its tasks; none for a program that joins a cluster."""
    job = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    return (job.get("runtime_env") or {}).get("env_vars") or {}


def spread(
    items: Sequence[T], work: Callable[[T], dict[str, Any]], options: StorageOptions, task: TaskSize
) -> Iterator[dict[str, Any]]:
    """`work_through` the items on the connected cluster, without GPUs outside of the pool that has them."""
    ensure_ray(options)
    if not task.gpus:
        return work_through(items, work, num_cpus=task.cpus, selector=pools.cpu_selector())
    pools.check_gpus(task.gpus, pools.places(), autoscaling=task.autoscaling)
    actors = len(items) if task.autoscaling else pools.room({"GPU": task.gpus}, pools.places())
    return work_through(items, work, num_gpus=task.gpus, actors=actors)
