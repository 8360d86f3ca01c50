"""Videos made once a test session."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from jala_ray.video.write import write_mp4
from tests.video.numbered import numbered


@pytest.fixture(scope="session")
def make_video(tmp_path_factory) -> Callable[..., Path]:
    """make_video(count=90, fps=30, gop=10, ...) -> path of an mp4 with numbered frames; the same request is
    made once.
    """
    folder = tmp_path_factory.mktemp("videos")
    made: dict[str, Path] = {}

    def make(count: int = 90, fps: float | Fraction = 30, **settings) -> Path:
        key = repr((count, fps, sorted(settings.items())))
        if key not in made:
            made[key] = folder / f"{len(made)}.mp4"
            write_mp4(made[key], numbered(count), fps, **{"gop": 10, "preset": "ultrafast"} | settings)
        return made[key]

    return make
