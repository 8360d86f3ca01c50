"""Workers that end before they have to: a node that is taken away, a group that grows. Both save first, so no step is done twice.

Ray Train says it to all ranks (`ray.train.get_preemption_info`); the trainer asks with every row, saves, and raises `StoppedByNotice`.
Ray 2.60 ends a run whose workers return, and counts a crash where one raises; so a worker ends with what Ray takes for a preemption
(`Preempted`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.exceptions import RayActorError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from jala_ray.config import ClusterConfig
from jala_ray.training import pools
from jala_ray.training.notice import Notice, StoppedByNotice

GRACE_S = 30.0
"""The workers that stay may write so long past the deadline, so that a checkpoint which is nearly there is not lost."""
RESIZE_PATIENCE_S = 600.0
"""A larger group waits so long for the smaller one's checkpoint; what it did since the last one is lost then."""


@dataclass(frozen=True)
class Resize(ray.train.PreemptionInfo):
    """Sent to the workers the way Ray sends word of a preemption: nothing is taken away, the group becomes another."""

    before: int = 0
    after: int = 0


class Preempted(RayActorError):
    """What a worker ends with once it has saved: Ray starts the group again at once, and counts no crash."""

    def __init__(self, why: str) -> None:
        super().__init__(error_msg=why, preempted=True)


def noticed() -> Notice | None:
    """Whether this group is to end. A barrier of all ranks, which all get rank 0's answer."""
    info = ray.train.get_preemption_info()
    if info is None:
        return None
    if isinstance(info, Resize):
        return Notice(f"{info.before} -> {info.after} workers")
    nodes, ranks = len(info.preempted_node_ids), ", ".join(map(str, info.preempted_ranks))
    why = f"{nodes} {'node is' if nodes == 1 else 'nodes are'} taken away, with ranks {ranks}"
    return Notice(why, None if info.deadline_ms is None else info.deadline_ms / 1000)


@contextlib.contextmanager
def started_again() -> Iterator[None]:
    """Around a worker's training: after a notice its group begins again from what it has saved."""
    try:
        yield
    except StoppedByNotice as stopped:
        raise Preempted(str(stopped)) from None


def scaling(cluster: ClusterConfig, selector: Mapping[str, str]) -> ray.train.ScalingConfig:
    """How many workers, what each of them reserves on one node, and on which nodes (a label selector, {} for all)."""
    elastic = 0 < cluster.min_workers < cluster.workers
    return ray.train.ScalingConfig(
        num_workers=(cluster.min_workers, cluster.workers) if elastic else cluster.workers,
        elastic_resize_monitor_interval_s=cluster.resize_every_s,
        use_gpu=cluster.gpus_per_worker > 0,
        resources_per_worker=pools.worker_bundle(cluster),
        label_selector=dict(selector) or None,
    )


def failures(cluster: ClusterConfig) -> ray.train.FailureConfig:
    """Crashes count, preemptions do not."""
    return ray.train.FailureConfig(
        max_failures=cluster.max_failures, max_preemption_failures=-1, preemption_grace_s=GRACE_S
    )


class SavesBeforeResize(WorkerGroupCallback, ControllerCallback):
    """In Ray's controller: before it ends a healthy group for one of another size, which it would do at once, the group saves.

    Ray says that callbacks of its own kinds are for such work (`DataParallelTrainer._create_default_callbacks`).
    """

    def __init__(self, patience_s: float = RESIZE_PATIENCE_S) -> None:
        self.patience_s = patience_s
        self.group: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        self.group = worker_group

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        self.group = None

    def after_worker_group_abort(self, worker_group_context: Any) -> None:
        self.group = None

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        if self.group is None or not healthy(self.group.get_latest_poll_status()):
            return  # it begins, or has ended already
        info = Resize(None, {}, len(self.group), resize_decision.num_workers)
        print(f"{info.before} -> {info.after} workers: the run saves, and begins again from there", flush=True)
        for worker in self.group.get_workers():
            worker.actor.mark_preempt.remote(info)
        end = time.monotonic() + self.patience_s
        while time.monotonic() < end:  # a look at the workers also takes what they report
            status = self.group.poll_status(timeout=1.0)
            if status.finished or any(not isinstance(error, Preempted) for error in status.errors.values()):
                return
            time.sleep(0.1)
        print(f"The workers have not saved within {self.patience_s:.0f} s: what they did since is lost", flush=True)


def healthy(status: Any) -> bool:
    """Of a group's last poll: all its workers train, and nobody has told them to end."""
    return status is not None and not (status.errors or status.finished or status.get_preemption_info())
