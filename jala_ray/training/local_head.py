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
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

PORT_FLAGS = (
    "--port",
    "--ray-client-server-port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
)
START_SECONDS = 300
PR_SET_PDEATHSIG = 1
NODE = "127.0.0.2"
"""A loopback address that Ray keeps; it would replace 127.0.0.1 by the machine's outer one."""


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
    """Loopback ports nobody listens on; held open together, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind((NODE, 0))
        return [s.getsockname()[1] for s in sockets]


@contextlib.contextmanager
def local_head(num_cpus: int, num_gpus: int | None = None, token: str | None = None) -> Iterator[Head]:
    """Start a head, yield its addresses, and end it and its children. Raises `RuntimeError` with the log if it won't start.

    `num_gpus` is what it says it has, by default what Ray finds; only who has its `token`, by default a new one, may use it.

    A raylet ends itself when an agent has not said its port, in a file, 15 s after its start, which is too short for a slow machine. All
    ports are therefore given; one of them Ray does not hand on to the raylet, so its file is written here.
    """
    folder = Path(tempfile.mkdtemp(prefix="jala-", dir="/tmp"))  # Ray's sockets need a short path
    log = folder / "head.log"
    ports = dict(zip(PORT_FLAGS, free_ports(len(PORT_FLAGS)), strict=True))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token or secrets.token_hex(32)}
    node_id = secrets.token_hex(28)
    head = Head(f"{NODE}:{ports['--port']}", f"http://{NODE}:{ports['--dashboard-port']}", log, environment)
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--num-cpus={num_cpus}"]
    command += [] if num_gpus is None else [f"--num-gpus={num_gpus}"]
    command += [f"--node-ip-address={NODE}", f"--dashboard-host={NODE}", f"--temp-dir={folder}"]
    command += [f"{flag}={port}" for flag, port in ports.items()]
    # So that a terminated caller clears up too, SIGTERM becomes an exception, and `finally` runs.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with log.open("wb") as output:
        named = environment | {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id}
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=named, start_new_session=True, preexec_fn=_outlive_nobody
        )
    try:
        deadline, agent = time.monotonic() + START_SECONDS, ports["--dashboard-agent-listen-port"]
        _say_port(folder, f"dashboard_agent_listen_port_{node_id}", agent, process, deadline)
        _wait_until_up(head, agent, process, deadline)
        yield head
    finally:
        _end(process)
        signal.signal(signal.SIGTERM, previous)
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


def _wait_until_up(head: Head, agent: int, process: subprocess.Popen[bytes], deadline: float) -> None:
    """Until the dashboard knows of a node that is alive, and the agent that starts jobs on it listens on its port."""
    bearer = {"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(f"{head.dashboard}/nodes?view=summary", headers=bearer)
    problem = "no node is alive"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                nodes = json.load(answer).get("data", {}).get("summary", [])
            if any(node["raylet"].get("state") == "ALIVE" for node in nodes):
                socket.create_connection((NODE, agent), timeout=5).close()
                return
        except (OSError, HTTPException) as error:  # refused, or an error of HTTP while they are on their way
            problem = str(error)
        time.sleep(0.3)
    raise RuntimeError(f"Ray did not start within {START_SECONDS} s ({problem}):\n{head.log.read_text()[-4000:]}")


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
