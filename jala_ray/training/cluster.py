"""What a job waits for in its Ray cluster, so that a run that cannot be placed says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import ray
from ray._private.state import state as ray_state
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.exceptions import RayError
from ray.runtime_context import RuntimeContext

from jala_ray.training.pools import Bundle, autoscaling_state, impossible
from jala_ray.training.watch import PATIENCE_S, Reminders, Say, pause, say

JOB_DIGITS = 8


# --- what the cluster is asked for -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    name: str
    total: Bundle
    used: Bundle
    """By tasks and actors, and reserved by placement groups."""

    def free(self) -> dict[str, float]:
        return {name: amount - self.used.get(name, 0.0) for name, amount in self.total.items()}


@dataclass(frozen=True)
class PlacementGroup:
    """A placement group."""

    id: str
    bundles: tuple[Bundle, ...]
    placed: bool

    @property
    def job(self) -> str:
        """Ray's ids of placement groups end with that of the job that asked for them."""
        return self.id[-JOB_DIGITS:]


@dataclass(frozen=True)
class Demand:
    """Tasks or actors of one size that wait for a place."""

    bundle: Bundle
    count: int


@dataclass(frozen=True)
class Cluster:
    """What a cluster has, holds and is asked for at a moment."""

    nodes: tuple[Node, ...]
    groups: tuple[PlacementGroup, ...]
    demands: tuple[Demand, ...]
    coming: int = 0
    """Nodes that an autoscaler has asked for."""
    job: str = ""
    """Id of the job that looks, hexadecimal."""
    autoscaler: bool = False
    """There is one that says what it cannot do."""
    impossible: frozenset[str] = frozenset()
    """Ids of the placement groups for which it knows no node."""
    failed: tuple[str, ...] = ()
    """Why it could not start nodes."""

    def holders(self) -> list[PlacementGroup]:
        return [group for group in self.groups if group.placed]

    def whose(self, group: PlacementGroup) -> str:
        return "this job" if group.job == self.job else f"job {group.job}"


def look(address: str, job: str) -> Cluster:
    """Ask the head at `address` for job `job`; takes milliseconds. Raises Ray's errors where it does not answer, and after a shutdown."""
    status = get_cluster_status(address)
    nodes = []
    for info in (*status.active_nodes, *status.idle_nodes):
        usage = info.resource_usage.usage if info.resource_usage is not None else []
        shown = [u for u in usage if _plain(u.resource_name)]
        total, used = ({u.resource_name: getattr(u, name) for u in shown} for name in ("total", "used"))
        nodes.append(Node(info.ip_address, total, used))
    groups = []
    # Not by `ray.util.placement_group_table`: in a thread that a shutdown overtakes it connects again, or starts a Ray of its own.
    for row in ray_state.placement_group_table().values():
        if row["state"] in ("PENDING", "RESCHEDULING", "CREATED"):
            bundles = tuple(dict(bundle) for bundle in row["bundles"].values())
            groups.append(PlacementGroup(row["placement_group_id"], bundles, row["state"] == "CREATED"))
    asked = [entry for demand in status.resource_demands.ray_task_actor_demand for entry in demand.bundles_by_count]
    # Of a placement group's own workers there is nothing to be told beside the group.
    demands = tuple(Demand(dict(e.bundle), e.count) for e in asked if all(_plain(name) for name in e.bundle))
    state = autoscaling_state(address)
    return Cluster(
        nodes=tuple(nodes),
        groups=tuple(groups),
        demands=demands,
        coming=len(status.pending_launches) + len(status.pending_nodes),
        job=job,
        autoscaler=state.autoscaler_state_version > 0,
        impossible=frozenset(impossible(state)),
        failed=tuple(dict.fromkeys(f"{one.ray_node_type_name}: {one.details}" for one in status.failed_launches)),
    )


def _plain(resource: str) -> bool:
    """Neither a node's own mark or memory, nor a share of a placement group's."""
    return not resource.startswith(("node:", "memory", "object_store_memory", "bundle")) and "_group_" not in resource


def waits(cluster: Cluster) -> dict[Hashable, str]:
    """What waits for a place in the cluster and cannot get one: what is asked for, what is there, and what to do.

    Tasks that queue behind others that run are no wait: those will end.
    """
    found: dict[Hashable, str] = {}
    for group in (group for group in cluster.groups if not group.placed):
        found[group.id] = (
            f"{cluster.whose(group)} wants workers of {_amounts(group.bundles)}. {_there(cluster, group.bundles, group.id)}"
        )
    for demand in cluster.demands:
        if not _fits(demand.bundle, [node.total for node in cluster.nodes]) or not _running(cluster):
            asked = _amounts((demand.bundle,) * demand.count)
            found[frozenset(demand.bundle.items())] = f"tasks want {asked}. {_there(cluster, (demand.bundle,))}"
    return found


def _running(cluster: Cluster) -> bool:
    """Something computes outside of placement groups: Ray Data's tasks do."""
    used = sum(node.used.get("CPU", 0.0) for node in cluster.nodes)
    reserved = sum(bundle.get("CPU", 0.0) for group in cluster.holders() for bundle in group.bundles)
    return used - reserved > 1e-3


def _fits(bundle: Bundle, places: Sequence[Bundle]) -> bool:
    return any(all(place.get(name, 0.0) >= amount - 1e-6 for name, amount in bundle.items()) for place in places)


def _there(cluster: Cluster, asked: Sequence[Bundle], group: str = "") -> str:
    """What there is, by node, who holds it, and the remedy. `group`: the id of the placement group that asks."""
    nodes = (
        f"node {node.name} "
        + ", ".join(f"{node.free()[n]:g} of {total:g} {n}" for n, total in sorted(node.total.items()))
        for node in cluster.nodes
    )
    said = [f"Free: {'; '.join(nodes) or 'no node at all'}."]
    if cluster.coming:
        said.append(f"Nodes on the way: {cluster.coming}.")
    held = [f"{cluster.whose(group)} {_amounts(group.bundles)}" for group in cluster.holders()]
    if held:
        said.append(f"Held by placement groups: {'; '.join(held)}.")
    if cluster.failed:
        said.append(f"Nodes that could not be started: {'; '.join(cluster.failed)}.")
    if cluster.autoscaler and group and group not in cluster.impossible:
        said.append("The autoscaler may start nodes for it: it waits for them, or for its limits.")
    elif all(_fits(bundle, [node.total for node in cluster.nodes]) for bundle in asked):
        said.append("Set cluster.workers or cluster.cpus_per_worker lower, add nodes, or end what holds them.")
    else:
        said.append("No node is that large: set cluster.cpus_per_worker or cluster.gpus_per_worker lower, or add one.")
    return " ".join(said)


def _amounts(bundles: Sequence[Bundle]) -> str:
    """`2 x {CPU 0.5, GPU 1} and 1 x {CPU 1}`."""
    shown = [", ".join(f"{name} {amount:g}" for name, amount in sorted(bundle.items())) for bundle in bundles]
    return " and ".join(f"{shown.count(text)} x {{{text}}}" for text in dict.fromkeys(shown))


# --- saying so -------------------------------------------------------------------------------------------------------


_threads: dict[str, threading.Thread] = {}
"""By the address of the cluster that is watched."""
_starting = threading.Lock()


def watch_cluster(patience_s: float = PATIENCE_S, say: Say = say) -> None:
    """From now on, say what the connected cluster cannot place when it has waited for `patience_s`, and again at doubled times.

    One thread a process does so, until it is no longer connected. Inside of a task or an actor there is none: its driver has one.
    """
    context = ray.get_runtime_context()
    if context.worker.mode != ray.SCRIPT_MODE:
        return
    address = context.gcs_address
    with _starting:
        there = _threads.get(address)
        if there is None or not there.is_alive():
            arguments = (context, address, patience_s, say)
            _threads[address] = threading.Thread(target=_watch, args=arguments, name="watches the cluster", daemon=True)
            _threads[address].start()


def _watch(context: RuntimeContext, address: str, patience_s: float, say: Say) -> None:
    reminders, began = Reminders(patience_s), dict[Hashable, float]()
    while True:
        time.sleep(pause(patience_s))
        if (job := _job(context, address)) is None:
            return
        try:
            found = waits(look(address, job))
        except (RayError, RuntimeError, ConnectionError, TimeoutError) as error:
            # A wait as any other, told when it lasts; after a shutdown in between it is never told.
            why = f"{type(error).__name__}: {error}"
            found = dict[Hashable, str]({address: f"the head of the cluster at {address} does not answer ({why})"})
        now = time.monotonic()
        began = {key: began.get(key, now) for key in found}
        lasting = {key: now - since for key, since in began.items()}
        for key, seconds in reminders.due(lasting).items():
            say(f"waiting for {seconds:.0f} s: {found[key]}")
        if reminders.ended(lasting):
            say("what was waited for has begun")


def _job(context: RuntimeContext, address: str) -> str | None:
    """The job as which the process is connected there; None when it no longer is. Asked of `context`, for a new one would connect again."""
    try:
        return context.get_job_id() if ray.is_initialized() and context.gcs_address == address else None
    except (RayError, RuntimeError, AttributeError, AssertionError):  # shut down in between
        return None
