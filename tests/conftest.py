"""Fixtures every room's tests share."""

from __future__ import annotations

import functools
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from moto.server import ThreadedMotoServer

import tests.ray_start  # noqa: F401  before anything imports Ray
from jala_ray.storage.resolving import WATCHED
from jala_ray.storage.surroundings import CHECKSUM_VARIABLE

# A slow machine is no failure.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


ROOT = Path(__file__).resolve().parents[1]
GROUPS = ("cluster", "chaos")
"""Files of tests with these marks run one after another in one process: no two Rays, and no two stores, share the cores."""


@functools.cache
def group(file: str) -> str:
    """What a file of tests is dealt out with, by the marks that it uses; else it is a group of its own, which makes its fixtures once."""
    text = (ROOT / file).read_text()
    return next((name for name in GROUPS if f"pytest.mark.{name}" in text), file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take longest come first."""
    order = {name: place for place, name in enumerate(GROUPS)}
    items.sort(key=lambda item: order.get(group(item.nodeid.partition("::")[0]), len(GROUPS)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deals out whole groups (`make test` has two processes); xdist's own groups are lost on pytest 9."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid.partition("::")[0])

    return Groups(config, log) if config.getoption("dist") == "loadscope" else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real inputs beside the checkout; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real test inputs are absent: no folder {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run small operations: more threads would only fight over the cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test draws the same numbers whatever ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _surroundings() -> Iterator[None]:
    """A job says in its process's environment how stores are reached; a test process has many jobs."""
    names = (*WATCHED, CHECKSUM_VARIABLE)
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """Ctrl-C is the caller's after any job (`interrupts_given_back`)."""
    before = signal.getsignal(signal.SIGINT)
    yield
    after = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert after is before, f"SIGINT is left to {after}"


@pytest.fixture(scope="session")
def _object_store() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_endpoint(_object_store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an S3 server that holds nothing. Keys to it are in the environment, the address is not."""
    request = urllib.request.Request(f"{_object_store}/moto-api/reset", method="POST")
    urllib.request.urlopen(request).close()  # all servers of a process share what they hold
    for name in (*WATCHED, CHECKSUM_VARIABLE):
        if name != "HOME":
            monkeypatch.setenv(name, "")  # restored afterwards: a job sets them for its process
            monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    return _object_store
