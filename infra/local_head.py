"""A Ray head of one's own: free loopback ports, its own temporary folder, ended by its own process id.

A Ray that already runs on the machine is neither used nor touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
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
START_SECONDS = 90


@dataclass(frozen=True)
class Head:
    gcs: str
    """host:port for `ray.init(address=...)`."""
    dashboard: str
    """http address for `ray job submit --address`."""
    log: Path


def free_ports(count: int) -> list[int]:
    """Loopback ports nobody listens on; held open together, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@contextlib.contextmanager
def local_head(num_cpus: int) -> Iterator[Head]:
    """Start a head, yield its addresses, and end it and its children. Raises `RuntimeError` with the log if it won't start."""
    folder = Path(tempfile.mkdtemp(prefix="jala-", dir="/tmp"))  # Ray's sockets need a short path
    log = folder / "head.log"
    ports = dict(zip(PORT_FLAGS, free_ports(len(PORT_FLAGS)), strict=True))
    head = Head(f"127.0.0.1:{ports['--port']}", f"http://127.0.0.1:{ports['--dashboard-port']}", log)
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--num-cpus={num_cpus}"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    command += [f"{flag}={port}" for flag, port in ports.items()]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        _wait_until_up(head, process)
        yield head
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(head: Head, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        # Jobs need the agent, which comes up after the dashboard.
        request = f"{head.dashboard}/api/jobs/"
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                json.load(reply)
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass  # not up yet; the deadline and the process's end are what counts
        time.sleep(0.3)
    raise RuntimeError(f"Ray did not start within {START_SECONDS} s:\n{head.log.read_text()[-4000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM lets `ray start --block` stop its own children; what is left of its session is killed."""
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
