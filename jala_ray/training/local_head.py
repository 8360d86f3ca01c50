"""A Ray head of one's own: free loopback ports, its own temporary folder, ended by its own process id.

A Ray that already runs on the machine is neither used nor touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

import psutil

PORT_FLAGS = (
    "--port",
    "--ray-client-server-port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
)
PORTS = range(20_000, 32_768)
START_SECONDS = 300
ATTEMPTS = 3
TAKEN = "address already in use"
PR_SET_PDEATHSIG = 1
NODE_ID = "RAY_OVERRIDE_NODE_ID_FOR_TESTING"
NODE = "127.0.0.2"
"""A loopback address that Ray keeps; it would replace 127.0.0.1 by the machine's outer one. Ray listens on others too
(docs/guides/security.md)."""
LOOPBACK = "127.0.0.1"
ONE_MACHINE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's switch for clusters of one machine, off by itself on Linux: with it, its own address is LOOPBACK, and all that it listens on."""


@dataclass(frozen=True)
class Head:
    gcs: str
    """host:port for `ray.init(address=...)`."""
    dashboard: str
    """http address for `ray job submit --address`."""
    log: Path
    environment: dict[str, str] = field(repr=False)
    """For processes that talk to this head: this process's own, with the head's token."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody holds on any address of this machine, since a head listens on more than its own (Ray's client on 127.0.0.1).

    They lie above those of Ray's workers and below those that the system gives to outgoing connections (32768 on Linux, 49152 on macOS):
    an ended connection keeps its port for a minute, and one is made between our look and Ray's more often than one would think.
    """
    found: list[int] = []
    with contextlib.ExitStack() as stack:  # held open together, so that they differ
        for port in secrets.SystemRandom().sample(PORTS, len(PORTS)):
            held = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                held.bind(("", port))
                found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError(
        f"{len(found)} ports of {PORTS.start} to {PORTS.stop - 1} are free, and {count} are needed: end what holds them"
    )


@contextlib.contextmanager
def local_head(
    num_cpus: int,
    num_gpus: int | None = None,
    token: str | None = None,
    *,
    address: str = NODE,
    more: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Iterator[Head]:
    """Start a head, yield its addresses, and end it and its children. Raises `RuntimeError` with the log if it won't start.

    `num_gpus` is what it says it has, by default what Ray finds; only who has its `token`, by default a new one, may use it. A head
    that met another program at one of its ports is started again, with other ports. It is reached at `address`, of this machine; `more`
    are arguments for `ray start`, `variables` its environment's.
    """
    resources = [f"--num-cpus={num_cpus}"] + ([] if num_gpus is None else [f"--num-gpus={num_gpus}"]) + list(more)
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | dict(variables or {})
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token or secrets.token_hex(32)}
    # So that a terminated caller clears up too, SIGTERM becomes an exception, and `finally` runs.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        for attempt in range(ATTEMPTS):
            with contextlib.ExitStack() as running:
                try:
                    head = running.enter_context(_started(resources, environment, address))
                except RuntimeError as error:
                    if TAKEN not in str(error).lower() or attempt == ATTEMPTS - 1:
                        raise
                    continue
                yield head
                return
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def lone_head(num_cpus: int, num_gpus: int | None = None, token: str | None = None) -> Iterator[Head]:
    """As `local_head`, with every port on LOOPBACK. Processes that connect need its `environment`; another node can't join."""
    with local_head(num_cpus, num_gpus, token, address=LOOPBACK, variables=ONE_MACHINE) as head:
        yield head


@contextlib.contextmanager
def _started(resources: list[str], environment: dict[str, str], address: str) -> Iterator[Head]:
    """One attempt.

    A raylet ends itself when an agent has not said its port, in a file, 15 s after its start, which is too short for a slow machine. All
    ports are therefore given; one of them Ray does not hand on to the raylet, so its file is written here.
    """
    folder = Path(tempfile.mkdtemp(prefix="jala-", dir="/tmp"))  # Ray's sockets need a short path
    log = folder / "head.log"
    ports = dict(zip(PORT_FLAGS, free_ports(len(PORT_FLAGS)), strict=True))
    node_id = environment.get(NODE_ID, secrets.token_hex(28))
    head = Head(f"{address}:{ports['--port']}", f"http://{address}:{ports['--dashboard-port']}", log, environment)
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", *resources]
    command += [f"--node-ip-address={address}", f"--dashboard-host={address}", f"--temp-dir={folder}"]
    command += [f"{flag}={port}" for flag, port in ports.items()]
    with log.open("wb") as output:
        named = environment | {NODE_ID: node_id}
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=named, start_new_session=True, preexec_fn=_outlive_nobody
        )
    try:
        deadline, agent = time.monotonic() + START_SECONDS, ports["--dashboard-agent-listen-port"]
        _say_port(folder, f"dashboard_agent_listen_port_{node_id}", agent, process, deadline)
        _wait_until_up(head, set(ports.values()), process, deadline)
        yield head
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _outlive_nobody() -> None:
    """In the head: SIGTERM comes when its caller is gone, however it went; `ray.init` replaces the caller's handler."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _say_port(folder: Path, name: str, port: int, process: subprocess.Popen[bytes], deadline: float) -> None:
    """Write the port's file once `ray start` has made its session's folder, which is seconds before it starts the raylet."""
    while time.monotonic() < deadline and process.poll() is None:
        for session in folder.glob("session_[0-9]*"):
            (session / name).write_text(str(port))
            return
        time.sleep(0.05)


def _wait_until_up(head: Head, ports: set[int], process: subprocess.Popen[bytes], deadline: float) -> None:
    """Until the dashboard knows of a node that is alive, and the head's own processes listen on all its ports.

    One that could not is noticed by `ray start` a second later, and the head ends: after a node is alive, as it may be.
    """
    bearer = {"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(f"{head.dashboard}/nodes?view=summary", headers=bearer)
    problem = "no node is alive"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                nodes = json.load(answer).get("data", {}).get("summary", [])
            if any(node["raylet"].get("state") == "ALIVE" for node in nodes):
                missing = ports - _listened(process.pid)
                if not missing:
                    return
                problem = f"nothing of it listens on {sorted(missing)}"
        except (OSError, HTTPException) as error:  # refused, or an error of HTTP while they are on their way
            problem = str(error)
        time.sleep(0.3)
    raise RuntimeError(f"Ray did not start within {START_SECONDS} s ({problem}):\n{head.log.read_text()[-4000:]}")


def _listened(head: int) -> set[int]:
    """The ports that the head's processes listen on."""
    ports: set[int] = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(head).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended
                ports |= {c.laddr.port for c in child.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return ports


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM lets `ray start --block` stop its own children; what is left of its session is killed."""
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
