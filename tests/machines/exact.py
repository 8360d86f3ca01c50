"""Runs in float64 on Ray, at a pace that a test sets, so that nodes can come and go in the middle of 24 steps."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any, cast

from jala_ray.config import RunConfig
from jala_ray.training.evaluating import Moment
from jala_ray.training.launch import train_worker
from tests.end_to_end.conftest import World
from tests.end_to_end.test_exactly_once import KILLED
from tests.end_to_end.test_ray import settings

PACE = "pace"
"""A file beside the run folder: seconds that every step takes longer."""
BATCH = 8
"""Dealt unevenly to three workers. A power of two, as is the end of an epoch (8, 8 and 4 rows): samples are weighed in float32, where a
third or a sixth is not exact."""
EXACT = (
    KILLED
    | {"train__batch": BATCH}
    | {"train__evaluate": (("tests.machines.exact:pace", 1),), "train__precision": "fp32"}
)


def set_pace(root: Path, seconds: float) -> None:
    fresh = root / f"{PACE}.new"
    fresh.write_text(str(seconds))
    fresh.replace(root / PACE)


def pace(at: Moment) -> dict[str, float]:
    time.sleep(float(Path(at.config.storage.root, PACE).read_text()))
    return {"waited": 1.0}


def exact_settings(world: World, root: Path, name: str, **values: object) -> RunConfig:
    set_pace(root, 0.0)
    return settings(world, root, name, **(EXACT | values))


def in_double(build: Any) -> Any:
    """`build_learner`, whose learner is all in float64: the library's norm would go through float32."""

    def built(*words: Any) -> Any:
        from tests.training.step_ranks import Qwen2RMSNorm, norm_in_double

        learner: Any = build(*words).double()
        for module in learner.modules():
            if isinstance(module, Qwen2RMSNorm):
                module.forward = cast(Any, partial(norm_in_double, module))
        return learner

    return built


def exact_worker(payload: dict[str, Any]) -> None:
    """`launch.train_worker` in float64."""
    from jala_ray.training import build

    build.build_learner = in_double(build.build_learner)
    train_worker(payload)
