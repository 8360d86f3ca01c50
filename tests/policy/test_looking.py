"""Two policies that were trained alike: one needs its picture and is not flagged as blind; one whose picture tells nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jala_ray.commands import shell
from jala_ray.data.robots.write import RobotLayout, RobotWriter
from jala_ray.policy.openloop.records import BLIND, SWAPPED
from jala_ray.policy.openloop.verdicts import MEAN
from jala_ray.training.local import run_local
from tests.policy.world import ACTION, CAMERA, FPS, LENGTH, SIDE, STATE, settings, shown, walked

EPISODES, STEPS, BATCH, SPEED = 48, 300, 32, 0.1


def write_line(folder: Path, told: bool) -> Path:
    """A point goes to a place on a line, which the picture shows. If it is `told`, the state's last number is the place, else always 0, and
    the picture shows another one. No two places are the same, as another episode's picture must be another one.
    """
    layout = RobotLayout(FPS, {STATE: 3, ACTION: 2}, {CAMERA: (SIDE, SIDE)})
    with RobotWriter(folder, layout) as writer:
        for number in range(EPISODES):
            rng = np.random.default_rng(number)
            goal, place = np.array([rng.uniform(-0.9, 0.9), 0.0]), rng.uniform(-0.3, 0.3, 2)
            seen = np.array([rng.uniform(-0.9, 0.9), 0.0]) if told else goal
            after = walked(place, goal, SPEED, LENGTH)
            before = np.concatenate([place[None], after[:-1]])
            state = np.concatenate([before, np.full((LENGTH, 1), goal[0] * told)], 1).astype(np.float32)
            signals = {STATE: state, ACTION: after.astype(np.float32)}
            writer.add(signals, {CAMERA: np.stack([shown(seen)] * LENGTH)}, "Go.")
    return folder


def compared(root: Path, told: bool) -> dict[str, Any]:
    """The open-loop figures of a policy that was trained on such a set."""
    robots = write_line(root / "line", told)
    sizes = {"width": 64, "layers": 4, "heads": 4, "hidden": 32, "future_tokens": 0, "dropout": 0.0}
    values: dict[str, Any] = {f"objective__head__{name}": size for name, size in sizes.items()}
    values |= {"objective__learns": "all", "objective__augment__on": False, "data__held_out_episodes": 0.25}
    values |= {"train__average": 0.0, "train__batch": BATCH, "train__micro_batch": BATCH, "train__log_every": 50}
    values |= {f"train__{name}": STEPS for name in ("steps", "checkpoint_every", "validate_every", "monitor_every")}
    run_local(settings(root / "runs", robots, "line", **values))
    assert shell.main(["openloop", str(root / "out"), str(root / "runs/line"), "--local"]) == 0
    return json.loads((root / "out/openloop.json").read_text())


@pytest.mark.slow
def test_who_needs_the_picture_is_not_blind_and_who_gains_nothing_from_it_is(tmp_path: Path) -> None:
    needs, told = compared(tmp_path / "needs", told=False), compared(tmp_path / "told", told=True)
    for found, looks in ((needs, True), (told, False)):
        (verdict,) = (one for one in found["verdicts"] if one["check"] == "looks")
        assert verdict["passed"] is looks, found["gains"]
        assert any(line.startswith("WARNING Blind") for line in found["warnings"]) != looks
        assert found["gains"][MEAN]["low"] > 0, "either has learned to act"
    assert all(needs["gains"][row]["low"] > 0 for row in (BLIND, SWAPPED))
