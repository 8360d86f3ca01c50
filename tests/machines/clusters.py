"""Clusters of several raylets on this machine, each of which can be ended by itself.

Nodes are numbers here: two raylets with `CPU: 2` share the machine's cores. Jobs run from the checkout, without a working folder of Ray's:
raylets that share a session race on unpacking one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # pyright: ignore[reportAttributeAccessIssue]

from jala_ray.training.local_head import NODE, NODE_ID, Head, local_head
from jala_ray.training.worker_setup import know_own_cluster
from tests.ray_start import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
STORE = 150_000_000
"""Bytes of a node's object store; Ray would take a third of the machine for each."""
QUICK = {
    # A node that does not answer is given up after some 10 s, not after a minute.
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_worker_niceness": "0",  # Ray starts workers at 15, and a busy machine lets them starve
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}
_addresses = itertools.count(11)


def until(true: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """What it gives once it is true. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"{what} did not come in {seconds:g} s"
        time.sleep(0.3)
    return found


def alive() -> dict[str, dict[str, Any]]:
    """Ray's nodes that are there, by their ids."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def drain(node_id: str, seconds: float) -> None:
    """What a cloud says of a spot node: it is taken away in so many seconds."""
    client = GcsClient(ray.get_runtime_context().gcs_address)
    deadline = int(1000 * (time.time() + seconds))
    accepted, why = client.drain_node(
        node_id, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "taken away by the cloud", deadline
    )
    assert accepted, why


def connect(head: Head, **more: Any) -> None:
    """This process becomes a driver there, as `ensure_ray` would make it: its workers know which of several Rays is theirs."""
    hook = f"{know_own_cluster.__module__}.{know_own_cluster.__name__}"
    ray.init(head.gcs, log_to_driver=True, runtime_env={"worker_process_setup_hook": hook}, **more)


# --- raylets ---------------------------------------------------------------------------------------------------------


@dataclass
class Raylet:
    """A node beside the head, at a loopback address of its own."""

    process: subprocess.Popen[bytes]
    address: str

    @property
    def id(self) -> str:
        return next(key for key, node in alive().items() if node["NodeManagerAddress"] == self.address)

    def here(self) -> bool:
        return any(node["NodeManagerAddress"] == self.address for node in alive().values())

    def kill(self) -> None:
        """As a machine that loses its power: SIGKILL for all its processes."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Machines:
    """A head, and nodes that are added by hand. This process is connected to it."""

    head: Head
    nodes: list[Raylet] = field(default_factory=list)

    def add(
        self,
        cpus: int,
        *,
        address: str | None = None,
        before: tuple[str, ...] = (),
        labels: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> Raylet:
        """Another node, once Ray knows it. `before`: what the command is run by."""
        address = address or f"127.0.0.{next(_addresses)}"
        node = Raylet(self.begin(cpus, address, before, labels, variables), address)
        self.nodes.append(node)
        until(node.here, f"the node at {address}")
        return node

    def begin(
        self, cpus: int, address: str, before: tuple[str, ...], labels: str, variables: Mapping[str, str] | None
    ) -> subprocess.Popen[bytes]:
        command = [*before, str(Path(sys.executable).parent / "ray"), "start", f"--address={self.head.gcs}", "--block"]
        command += [f"--num-cpus={cpus}", f"--node-ip-address={address}", f"--object-store-memory={STORE}"]
        command += [f"--labels={labels}"] if labels else []
        environment = self.head.environment | QUICK | dict(variables or {})
        with (self.head.log.parent / f"{address}.log").open("wb") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.PIPE, env=environment, start_new_session=True
            )


@contextlib.contextmanager
def machines(cpus: int, *, address: str = NODE, variables: Mapping[str, str] | None = None) -> Iterator[Machines]:
    """A head with `cpus`, at which this process is the driver; all its nodes are ended after it."""
    with (
        settings(variables) as named,
        local_head(
            cpus,
            0,
            SETTINGS["RAY_AUTH_TOKEN"],
            address=address,
            more=[f"--object-store-memory={STORE}"],
            variables=named,
        ) as head,
    ):
        connect(head, _node_ip_address=address)
        found = Machines(head)
        try:
            yield found
        finally:
            ray.shutdown()
            for node in found.nodes:
                node.kill()


@contextlib.contextmanager
def settings(more: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """`QUICK` in this process too: Ray Train's controller takes the driver's."""
    named = QUICK | dict(more or {})
    before = {name: os.environ.get(name) for name in named}
    os.environ.update(named)
    try:
        yield named
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- a cloud ---------------------------------------------------------------------------------------------------------

HEAD_ID = "f" * 51 + "00000"


@dataclass(frozen=True)
class NodeType:
    """What the pretended cloud has: nodes of `resources`, at most `most` of them."""

    resources: Mapping[str, float]
    most: int
    labels: Mapping[str, str] = field(default_factory=dict)


def cloud_config(types: Mapping[str, NodeType], idle_s: float) -> dict[str, Any]:
    """As `ray up` would take it, for nodes that are pretended."""
    described: dict[str, Any] = {
        name: {
            "resources": {**kind.resources, "object_store_memory": STORE},
            "labels": dict(kind.labels),
            "node_config": {},
            "min_workers": 0,
            "max_workers": kind.most,
        }
        for name, kind in types.items()
    }
    described["ray.head.default"] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    no_commands = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "cloud",
        "max_workers": sum(kind.most for kind in types.values()),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": "tests.machines.provider.Provider",
            "disable_node_updaters": True,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
        },
        "auth": {"ssh_user": "nobody"},
        "available_node_types": described,
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        "cluster_synced_files": [],
        **{f"{name}_commands": [] for name in no_commands},
    }


@contextlib.contextmanager
def cloud(folder: Path, types: Mapping[str, NodeType], idle_s: float = 20.0) -> Iterator[Head]:
    """A head without CPUs whose autoscaler starts nodes of `types` on demand, and ends those that are idle for `idle_s`."""
    written = folder / "cloud.json"
    written.write_text(json.dumps(cloud_config(types, idle_s)))
    variables = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        NODE_ID: HEAD_ID,
    }
    more = [f"--autoscaling-config={written}", f"--object-store-memory={STORE}"]
    with (
        settings() as named,
        local_head(0, 0, SETTINGS["RAY_AUTH_TOKEN"], more=more, variables=named | variables) as head,
    ):
        connect(head)
        try:
            yield head
        finally:
            ray.shutdown()
            end_all_of(head)


def end_all_of(head: Head) -> None:
    """Nodes that the autoscaler has started are no children of the head."""
    folder = str(head.log.parent)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(folder in word for word in process.cmdline()):
                process.kill()
