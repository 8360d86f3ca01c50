"""Videos to inspect, and a page without the 5 MB of its script."""

from __future__ import annotations

from pathlib import Path

import pytest

from jala_ray.reports.kit import html
from jala_ray.video.write import write_mp4
from tests.reports.inspection.pages import FPS, noise


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch):
    monkeypatch.setattr(html, "plotly_js", lambda: "/* plotly */")


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> list[Path]:
    """Files of 4 s at 30 fps that show something."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / f"{i}.mp4" for i in range(4)]
    for i, path in enumerate(paths):
        write_mp4(path, (noise(i) for _ in range(4 * FPS)), FPS)
    return paths
