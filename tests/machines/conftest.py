"""The small world, an unbroken run in one process to compare with, and a record of what was measured."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jala_ray.config import RunConfig
from jala_ray.training import launch, local
from tests.end_to_end.conftest import World
from tests.end_to_end.conftest import world as world
from tests.end_to_end.test_exactly_once import check_each_row_once
from tests.machines.exact import BATCH, exact_settings, exact_worker, in_double

RESULTS = "MACHINES_RESULTS"
"""Environment variable: a JSON file into which what is measured is put, by the name of its test."""


@pytest.fixture(scope="session")
def unbroken(world: World, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """24 steps in float64 in one process."""
    config = exact_settings(world, tmp_path_factory.mktemp("unbroken"), "unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "build_learner", in_double(local.build_learner))
        local.run_local(config)
    check_each_row_once(config, BATCH)
    return config


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers on Ray compute in float64."""
    monkeypatch.setattr(launch, "train_worker", exact_worker)


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keep figures of this test, where a file for them is named."""
    began = time.monotonic()

    def put(**figures: Any) -> None:
        if name := os.environ.get(RESULTS):
            path = Path(name)
            known = json.loads(path.read_text()) if path.exists() else {}
            known[request.node.name] = figures | {"seconds": round(time.monotonic() - began, 1)}
            path.write_text(json.dumps(known, indent=1) + "\n")

    return put
