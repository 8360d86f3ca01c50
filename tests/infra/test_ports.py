"""What a head listens on: all of it on loopback where one machine is all there is, and nothing that does anything without the token."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

import grpc
import psutil
import pytest

from jala_ray.training.local_head import Head, local_head, lone_head

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

CALLS = (
    "NodeInfoGcsService/GetAllNodeInfo",  # GCS
    "InternalKVGcsService/InternalKVKeys",
    "NodeManagerService/GetNodeStats",  # raylet
    "ObjectManagerService/Pull",
    "CoreWorkerService/PushTask",  # workers
    "ReporterService/GetTraceback",  # agent
    "RayletDriver/ClusterInfo",  # Ray's client
)
Door = Literal["refuses", "metrics", "page", "open"]
ACTOR = """
import ray, sys
ray.init(sys.argv[1], log_to_driver=False)
@ray.remote
class Idle:
    def pid(self):
        import os
        return os.getpid()
idle = Idle.remote()
print(ray.get(idle.pid.remote()), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Listening:
    address: str
    port: int
    process: str

    @property
    def loopback(self) -> bool:
        found = ip_address(self.address)
        mapped = getattr(found, "ipv4_mapped", None)
        return (mapped or found).is_loopback

    @property
    def reached_at(self) -> str:
        found = ip_address(self.address)
        return "127.0.0.1" if found.is_unspecified else str(getattr(found, "ipv4_mapped", None) or found)


def listening() -> list[Listening]:
    """Sockets of all processes that this one has started: the head's, and a driver's."""
    found: set[Listening] = set()
    for process in psutil.Process().children(recursive=True):
        try:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add(Listening(connection.laddr.ip, connection.laddr.port, process.name()))
        except psutil.Error:  # it has ended
            continue
    return sorted(found, key=lambda one: (one.address, one.port))


def page(address: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Status and beginning of what HTTP answers; 0 where HTTP is not spoken."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as answer:
            return answer.status, answer.read(20)
    except urllib.error.HTTPError as error:
        return error.code, b""
    except (OSError, ValueError, urllib.error.URLError):
        return 0, b""
    except Exception as error:  # http.client's, of an answer that is none
        assert type(error).__module__ == "http.client", error
        return 0, b""


def door(one: Listening, token: str = "") -> Door:
    """What a request without the token, or with this one, meets at a port."""
    status, text = page(f"http://{one.reached_at}:{one.port}/", {"Authorization": f"Bearer {token}"} if token else {})
    if status in (401, 403):
        return "refuses"
    if status == 200:
        return "metrics" if text.startswith(b"# HELP") else "page" if text.lower().startswith(b"<!doctype") else "open"
    bearer = (("authorization", f"Bearer {token}"),) if token else None
    codes = set()
    with grpc.insecure_channel(f"{one.reached_at}:{one.port}") as channel:
        for call in CALLS:
            try:
                channel.unary_unary(f"/ray.rpc.{call}")(b"", timeout=30, metadata=bearer)
                codes.add(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.add(error.code())
    return "refuses" if codes - {grpc.StatusCode.UNIMPLEMENTED} == {grpc.StatusCode.UNAUTHENTICATED} else "open"


@pytest.fixture(params=[lone_head, local_head])
def head(request: pytest.FixtureRequest) -> Iterator[tuple[Head, bool]]:
    """A head with a worker, and whether it is one that stays on loopback."""
    start: Callable[[int], AbstractContextManager[Head]] = request.param
    with start(1) as started:
        worker = [sys.executable, "-c", ACTOR, started.gcs]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(worker, env=started.environment, text=True, **pipes) as driver:
            assert driver.stdout is not None and driver.stdout.readline().strip().isdigit()
            yield started, start is lone_head
            driver.communicate("")


def test_no_port_does_anything_without_the_token(head: tuple[Head, bool]) -> None:
    started, alone = head
    ports = listening()
    assert len(ports) >= 10, ports
    told = [f"{one.process:<16} {one.address}:{one.port} {door(one)}" for one in ports]
    print("\n".join(told))
    doors = {one: door(one) for one in ports}
    assert "open" not in doors.values(), told
    # Two of the three pages with metrics have fixed ports, which another Ray may hold.
    assert 1 <= list(doors.values()).count("metrics") <= 3 and list(doors.values()).count("page") == 1
    assert sum(found == "refuses" for found in doors.values()) >= 7
    if alone:
        assert all(one.loopback for one in ports), told
    else:
        outside = {one.process for one in ports if not one.loopback}
        assert outside, "the guide to security says so: correct it"
    api = f"{started.dashboard}/api/jobs/"
    right = {"Authorization": f"Bearer {started.environment['RAY_AUTH_TOKEN']}"}
    assert page(api, {})[0] == 401 and page(api, {"Authorization": "Bearer " + "0" * 64})[0] in (401, 403)
    assert page(api, right)[0] == 200
    [gcs] = [one for one in ports if one.port == int(started.gcs.rpartition(":")[2])]
    assert door(gcs, "0" * 64) == "refuses"
    assert door(gcs, started.environment["RAY_AUTH_TOKEN"]) == "open", "the probe would see an open door"
