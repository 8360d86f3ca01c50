"""A small post-trained policy, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from jala_ray.training.local import run_local
from tests.policy.world import settings, write_points


@pytest.fixture(scope="session")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_points(tmp_path_factory.mktemp("points") / "points")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, points: Path) -> Path:
    """A run's folder."""
    root = tmp_path_factory.mktemp("runs")
    run_local(settings(root, points))
    return root / "points"
