"""Nodes for work that needs no GPU, and whether what a run asks for fits a node. Knows Ray, but neither Train nor Data.

Nodes with GPUs are labelled `jala.io/pool: gpu`; work of CPUs alone goes elsewhere, to nodes of another label or of none. A label is what
Ray Data 2.60 hands on to the autoscaler beside CPUs, GPUs and memory, so that no node with GPUs is started for a decoding task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.autoscaler.v2 import sdk
from ray.util import placement_group, remove_placement_group

from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from jala_ray.config import ClusterConfig

POOL = "jala.io/pool"
GPU_POOL = "gpu"
NO_GPU_POOL = {POOL: f"!{GPU_POOL}"}
"""Label selector of tasks and actors that need no GPU."""
ANSWER_S = 20.0
"""An autoscaler looks at what is asked for every 5 s."""

Bundle = Mapping[str, float]
"""Amounts by resource, e.g. {"CPU": 0.5}."""


@dataclass(frozen=True)
class ClusterNode:
    """A node that is there."""

    name: str
    total: Bundle
    pool: str = ""

    @property
    def cpus(self) -> float:
        return self.total.get("CPU", 0.0)

    def holds(self, bundle: Bundle) -> int:
        """How many of it fit, where nothing else is."""
        shares = [self.total.get(name, 0.0) / amount for name, amount in bundle.items() if amount > 0]
        return int(min(shares, default=0.0) + 1e-6)

    def __str__(self) -> str:
        shown = [f"{self.total[name]:g} {name}" for name in ("CPU", "GPU") if self.total.get(name)]
        return f"{self.name} {', '.join(shown) or 'nothing'}"


def places() -> list[ClusterNode]:
    """The nodes of the connected cluster."""
    return [
        ClusterNode(node["NodeManagerAddress"], node["Resources"], (node.get("Labels") or {}).get(POOL, ""))
        for node in ray.nodes()
        if node["Alive"]
    ]


# --- pools -----------------------------------------------------------------------------------------------------------


def cpu_selector() -> dict[str, str]:
    """Where work of CPUs alone may go: not into the pool with GPUs, if there is a CPU outside of it or an autoscaler has some."""
    return selector_for(places(), lambda: offered({"CPU": 1.0}, NO_GPU_POOL))


def selector_for(there: Sequence[ClusterNode], offers: Callable[[], bool | None]) -> dict[str, str]:
    """`cpu_selector` of nodes that are there. `offers`: whether an autoscaler has CPUs outside of the pool; None where none says so."""
    outside = any(place.cpus >= 1 and place.pool != GPU_POOL for place in there)
    return dict(NO_GPU_POOL) if outside or offers() else {}


# --- what an autoscaler could start ----------------------------------------------------------------------------------


def autoscaling_state(address: str) -> Any:
    """Ray's `AutoscalingState`, as its autoscaler tells it; version 0 where there is none, or the first kind, which tells nothing."""
    reply: Any = sdk.GetClusterStatusReply()
    reply.ParseFromString(sdk.GcsClient(address).get_cluster_status(timeout_s=10))
    return reply.autoscaling_state


def impossible(state: Any) -> set[str]:
    """Ids of the placement groups for which the autoscaler knows no node."""
    return {gang.details.partition(":")[0] for gang in state.infeasible_gang_resource_requests}


def offered(bundle: Bundle, selector: Mapping[str, str] | None = None, patience_s: float = ANSWER_S) -> bool | None:
    """Whether a node that is there, or one of a type that the autoscaler knows, holds `bundle`. None: nobody answers.

    Ray tells nobody which types of nodes it could start. It is therefore asked for one place, which is given back: a node that it
    begins to start is what comes next anyway.
    """
    address = ray.get_runtime_context().gcs_address
    if not (seen := autoscaling_state(address).autoscaler_state_version):
        return None
    where: dict[str, Any] = {"bundle_label_selector": [dict(selector)]} if selector else {}
    group: Any = placement_group([dict(bundle)], **where)
    name, end = group.id.hex(), time.monotonic() + patience_s
    try:
        while time.monotonic() < end:
            if group.wait(1):
                return True
            state = autoscaling_state(address)
            if name in impossible(state):
                return False
            if state.autoscaler_state_version > seen + 2:
                return True  # it has thought about it since, and does not call it infeasible
        return None
    finally:
        remove_placement_group(group)


def worker_selector(
    cluster: ClusterConfig,
    there: Sequence[ClusterNode],
    offers: Callable[[Bundle, Mapping[str, str]], bool | None] = offered,
) -> dict[str, str]:
    """Where training workers without GPUs go: not into the pool with GPUs, if all of them and a reading CPU have a place outside of it, or
    an autoscaler starts nodes outside that hold one. Workers with GPUs go where those are."""
    if cluster.gpus_per_worker:
        return {}
    bundle = worker_bundle(cluster)
    outside = [place for place in there if place.pool != GPU_POOL]
    free = sum(place.cpus for place in outside) - cluster.workers * cluster.cpus_per_worker
    enough = free >= 1 and room(bundle, outside) >= cluster.workers
    return dict(NO_GPU_POOL) if enough or (cluster.autoscaling and offers(bundle, NO_GPU_POOL)) else {}


# --- does it fit -----------------------------------------------------------------------------------------------------


def worker_bundle(cluster: ClusterConfig) -> dict[str, float]:
    """What each worker reserves on one node."""
    gpus = cluster.gpus_per_worker
    return {"CPU": cluster.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


def room(bundle: Bundle, there: Sequence[ClusterNode]) -> int:
    """How many of it the nodes hold, where nothing else is."""
    return sum(place.holds(bundle) for place in there)


def check_gpus(
    gpus: float,
    there: Sequence[ClusterNode],
    *,
    autoscaling: bool,
    offers: Callable[[Bundle], bool | None] = offered,
) -> None:
    """Refuse tasks with so many GPUs each where no node has them, and none can come. Raises `ConfigError`."""
    bundle = {"GPU": gpus}
    if room(bundle, there) or (autoscaling and offers(bundle) is not False):
        return
    by_node = "; ".join(f"node {place}" for place in there) or "no node"
    remedy = (
        "No node that the autoscaler may start has them."
        if autoscaling
        else "Where nodes come on demand pass --autoscaling."
    )
    raise ConfigError("--gpus-per-task", gpus, f"a node with so many GPUs: {by_node}", remedy)


def check_fits(
    cluster: ClusterConfig,
    there: Sequence[ClusterNode],
    offers: Callable[[Bundle], bool | None] = offered,
) -> None:
    """Refuse, before anything starts, workers that no node holds, with the arithmetic by node, and a launch that leaves no CPU to read.

    Where nodes come on demand only what no type of node holds is refused. Raises `ConfigError`.
    """
    bundle = worker_bundle(cluster)
    fitting = room(bundle, there)
    if cluster.autoscaling:
        if not fitting and offers(bundle) is False:
            raise _too_large(
                cluster, bundle, there, "No type of node that the autoscaler may start is that large either."
            )
        return
    least = cluster.min_workers or cluster.workers
    total = sum(place.total.get("GPU", 0.0) for place in there)
    if cluster.gpus_per_worker * least > total:
        remedy = "On an autoscaling cluster set cluster.autoscaling True."
        raise ConfigError("cluster.gpus_per_worker", cluster.gpus_per_worker, f"at most {total:g} GPUs", remedy)
    begins = max(least, min(cluster.workers, fitting))  # an elastic group takes all that fit
    _check_reading(cluster, begins, there)
    if fitting < least:
        raise _too_large(cluster, bundle, there, "On an autoscaling cluster set cluster.autoscaling True.")


def _check_reading(cluster: ClusterConfig, workers: int, there: Sequence[ClusterNode]) -> None:
    """Beside so many workers a CPU has to stay free for Ray Data's tasks."""
    have, asked = sum(place.cpus for place in there), workers * cluster.cpus_per_worker
    if have - asked < 1.0:
        arithmetic = f"{workers} workers x {cluster.cpus_per_worker:g} CPU = {asked:g} of {have:g} CPUs"
        most = max(0.0, (have - 1.0) / cluster.workers)
        remedy = f"Decoding needs at least 1 CPU of its own: set cluster.cpus_per_worker <= {most:g} or fewer workers."
        raise ConfigError("cluster.cpus_per_worker", cluster.cpus_per_worker, f"a free CPU, but {arithmetic}", remedy)


def _too_large(cluster: ClusterConfig, bundle: Bundle, there: Sequence[ClusterNode], more: str) -> ConfigError:
    asked = ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())
    by_node = "; ".join(f"node {place}: {place.holds(bundle)}" for place in there) or "no node"
    least = cluster.min_workers or cluster.workers
    expected = f"a place for {least}, each of {asked} on one node. What fits: {by_node}"
    remedy = f"Set cluster.cpus_per_worker or cluster.gpus_per_worker lower, or add nodes. {more}"
    return ConfigError("cluster.workers", cluster.workers, expected, remedy)
