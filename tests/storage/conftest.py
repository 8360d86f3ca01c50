"""Places that tests of the storage write to."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from jala_ray.storage import clients, patience
from tests.faults.proxy import FaultProxy
from tests.storage.reaching import BUCKET


@pytest.fixture
def s3(s3_endpoint, monkeypatch) -> str:
    """An S3 folder that nothing else uses; the endpoint comes from the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket=BUCKET)
    return f"s3://{BUCKET}/run"


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path) -> str:
    return str(tmp_path / "store" / "run") if request.param == "local" else request.getfixturevalue("s3")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small folder to upload."""
    made = tmp_path / "made"
    (made / "weights").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "weights" / "model.safetensors").write_bytes(b"0123456789abcdef" * 64)
    return made


class Time:
    """Seconds that pass by being slept, and what was slept."""

    def __init__(self) -> None:
        self.now, self.pauses = 1000.0, []

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture(autouse=True)
def _no_outage() -> Iterator[None]:
    """What one test saw of a store says nothing to the next."""
    with pytest.MonkeyPatch.context() as patch:  # Of its own: a test's is undone before its fixtures are.
        patch.setattr(patience, "_watch", patience._Watch())
        yield


@pytest.fixture
def slept(monkeypatch) -> Time:
    """Waits of the storage take no time."""
    time = Time()
    monkeypatch.setattr(patience, "clock", lambda: time.now)
    monkeypatch.setattr(patience, "pause", time.pause)
    return time


@pytest.fixture
def proxy(s3: str, s3_endpoint: str, monkeypatch) -> Iterator[FaultProxy]:
    """Between the storage and its server; lets nothing fail until it is told to. Failures are tried again soon."""
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 0.05)
    with FaultProxy(s3_endpoint, stall_s=0.05) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between


@pytest.fixture
def let_fail(proxy: FaultProxy, monkeypatch) -> Callable[..., None]:
    """`let_fail(kind, "METHOD pattern", times)`: so many of the next requests that fit meet this fault."""
    due: list[list] = []
    real = proxy.plan.draw

    def draw(method: str, target: str):
        drawn = real(method, target)
        for fault in due:
            kind, pattern, times = fault
            if times and re.search(pattern, f"{method} {target}"):
                fault[2] -= 1
                return kind, random.Random(0)
        return drawn

    monkeypatch.setattr(proxy.plan, "draw", draw)
    return lambda kind, pattern, times=1: due.append([kind, pattern, times])


@pytest.fixture
def fresh_clients() -> Iterator[None]:
    """Credentials differ between these tests, and a client keeps those that it was made with."""
    clients.forget_clients()
    yield
    clients.forget_clients()


@pytest.fixture
def store(fresh_clients: None, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Address of an object; nothing in environment or files says how to reach its store, but for its keys."""
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="x.bin", Body=b"12345678", ACL="public-read")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return f"s3://{BUCKET}/x.bin"
