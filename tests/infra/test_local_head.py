"""A head ends with its caller, however the caller ends, and keeps away from ports that others hold."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jala_ray.training import local_head as heads

ROOT = Path(__file__).resolve().parents[2]
CALLER = """
import time
from infra.local_head import local_head
with local_head(1) as head:
    print(head.log, flush=True)
    time.sleep(600)
"""


def of_head(folder: str) -> list[psutil.Process]:
    """The processes of the head with this temporary folder."""
    return [p for p in psutil.process_iter(["cmdline"]) if any(folder in part for part in p.info["cmdline"] or ())]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_head_ends_with_its_caller(end: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", CALLER], cwd=ROOT, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        folder = str(Path(caller.stdout.readline().strip()).parent)
        assert len(of_head(folder)) > 2
        caller.send_signal(end)
        caller.wait(timeout=120)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and of_head(folder):
        time.sleep(1)
    assert not of_head(folder)
    assert Path(folder).exists() == (end == signal.SIGKILL), "only who lives can clear up"


def test_a_port_is_free_on_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head listens on 127.0.0.2, Ray's client on 127.0.0.1; a connection that has ended holds its port there for a minute."""
    (port,) = heads.free_ports(1)
    monkeypatch.setattr(heads, "PORTS", range(port, port + 1))
    assert heads.free_ports(1) == [port]
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as ended:
        ended.bind(("127.0.0.1", port))
        ended.connect(server.getsockname())
        ended.shutdown(socket.SHUT_WR)
        server.accept()[0].close()
    with pytest.raises(RuntimeError, match="0 ports of"):
        heads.free_ports(1)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_head_that_meets_another_at_a_port_tries_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the port of Ray's client, whose end ends the head."""
    free, drawn = heads.free_ports, []

    def first_taken(count: int) -> list[int]:
        ports = free(count)
        drawn.append(ports)
        return [ports[0], server.getsockname()[1], *ports[2:]] if len(drawn) == 1 else ports

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(heads, "free_ports", first_taken)
        with heads.local_head(1) as head:
            assert head.gcs == f"127.0.0.2:{drawn[1][0]}"
    assert len(drawn) == 2
