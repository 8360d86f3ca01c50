"""metaworld, LIBERO and pusht themselves: slow, in environments that are made here or skipped with the reason."""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jala_ray.commands import shell
from jala_ray.data.robots.write import RobotLayout, RobotWriter
from jala_ray.rollouts.driving import ASKING
from jala_ray.rollouts.environments import make, start_of
from jala_ray.rollouts.process import SimulatorProcess
from jala_ray.types import JalaError
from tests.data.robots.made import opened, samples_of
from tests.rollouts.asked import lines, scores
from tests.serving.test_command import served

pytestmark = pytest.mark.slow
NEWER = os.environ.get("PYTHON312") or shutil.which("python3.12")
CORNER = "observation.images.corner"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A process of a simulator, by its name; `JALA_SIMULATORS` may name a folder in which environments are kept."""
    patch = pytest.MonkeyPatch()
    if "JALA_SIMULATORS" not in os.environ:
        patch.setenv("JALA_SIMULATORS", str(tmp_path_factory.mktemp("simulators")))

    def start(name: str) -> SimulatorProcess:
        if name == "libero" and NEWER is None:
            pytest.skip("no python3.12; PYTHON312 may name one")
        try:
            make(name, NEWER if name == "libero" else sys.executable)
        except JalaError as error:
            pytest.skip(f"{name} can't be set up here: {error}")
        return SimulatorProcess(start_of(name))

    yield start
    patch.undo()


def replayed(process: SimulatorProcess, task: str, actions: np.ndarray) -> dict[str, Any]:
    process.reset(task, 7, "seen")
    process.step(actions=actions)
    return process.observe()


def test_metaworld_s_experts_succeed_and_seeds_differ(
    started: Callable[[str], SimulatorProcess], tmp_path: Path
) -> None:
    with started("metaworld") as process:
        hello = process.hello()
        assert len(hello["tasks"]) == 50 == len(hello["experts"]) and hello["state"] == {"observation.state": 4}
        seen = {}
        for seed, variant in ((0, "seen"), (1, "seen"), (0, "unseen"), (0, "seen")):
            process.reset("push-v3", seed, variant)
            picture = process.observe()["pictures"][CORNER]
            assert picture.shape == (128, 128, 3)
            if (seed, variant) in seen:
                np.testing.assert_array_equal(picture, seen[seed, variant], "the same start looks alike")
            seen[seed, variant] = picture
        off = {key: np.abs(picture.astype(int) - seen[0, "seen"]).mean() for key, picture in seen.items()}
        assert off[1, "seen"] > 0.1 and off[0, "unseen"] > 3, "the table covers much of the picture"
        actions = np.random.default_rng(0).uniform(-1, 1, (60, 4)).astype(np.float32)
        one, two = (replayed(process, "push-v3", actions) for _ in range(2))
        np.testing.assert_array_equal(one["state"]["observation.state"], two["state"]["observation.state"])
    words = ["rollouts", "run", "--simulator", "metaworld", "--arms", "expert", "idle", "--variants", "seen", "unseen"]
    tasks = ["drawer-open-v3", "shelf-place-v3"]
    assert shell.main([*words, "--tasks", *tasks, "--rollouts", "4", "--videos", "1", "--out", str(tmp_path)]) == 0
    found = scores(tmp_path)
    for task in tasks:
        for variant in ("seen", "unseen"):
            counts = {arm: found["success"][arm][task][variant]["count"] for arm in ("expert", "idle")}
            assert counts == {"expert": 4, "idle": 0}
    assert all(film["file"] and not film["problem"] for film in found["films"]) and len(found["films"]) == 4


def test_metaworld_s_demonstrations_are_read_back(started: Callable[[str], SimulatorProcess], tmp_path: Path) -> None:
    started("metaworld").close()
    words = ["rollouts", "record", "--tasks", "button-press-v3", "--episodes", "3", "--out", str(tmp_path / "set")]
    assert shell.main([*words, "--cameras", CORNER, "observation.images.gripper", "--size", "112"]) == 0
    told = json.loads((tmp_path / "set/meta/recorded.json").read_text())["tasks"]["button-press-v3"]
    source = opened(tmp_path / "set")
    samples = samples_of(source)
    assert len(samples) == told["frames"] and source.sets.sets[0].cameras == (CORNER, "observation.images.gripper")
    with SimulatorProcess(start_of("metaworld")) as process:
        process.reset("button-press-v3", told["seeds"][0], "seen")
        again = process.step(drive="expert", steps=500, see=1)
    np.testing.assert_array_equal(samples[0].signals["action"].values, again["actions"])


def test_libero_settles_and_shows_both_cameras(started: Callable[[str], SimulatorProcess]) -> None:
    with started("libero") as process:
        hello = process.hello()
        assert len(hello["tasks"]) == 40 and hello["fps"] == 20 and hello["state"] == {"observation.state": 8}
        seen = []
        for start in (0, 1, 0):
            process.reset("libero_object-0", start, "seen")
            seen.append(process.observe())
        for camera in ("observation.images.image", "observation.images.wrist_image"):
            first, other, again = (one["pictures"][camera].astype(int) for one in seen)
            assert first.shape == (128, 128, 3) and first.std() > 20
            np.testing.assert_array_equal(first, again)
            assert np.abs(first - other).mean() > 0.1, "another start"
        before = seen[0]["state"]["observation.state"]
        moved = process.step(actions=np.tile(np.array([0, 0, -1, 0, 0, 0, -1], np.float32), (10, 1)))
        after = process.observe()["state"]["observation.state"]
        assert moved["steps"] == 10 and after[2] < before[2] - 0.02, "the hand goes down"


def noise_set(folder: Path, hello: Mapping[str, Any], episodes: int = 4, length: int = 24) -> Path:
    """A data set of what a simulator has: its cameras, state, actions, rate and instructions; all values are noise."""
    rng = np.random.default_rng(0)
    widths = hello["state"] | {"action": len(hello["low"])}
    layout = RobotLayout(hello["fps"], widths, dict.fromkeys(hello["cameras"], (128, 128)), robot="arm")
    with RobotWriter(folder, layout) as writer:
        for task in [*hello["tasks"].values()][:episodes]:
            signals = {name: rng.uniform(-1, 1, (length, width)).astype(np.float32) for name, width in widths.items()}
            shown = {name: rng.integers(0, 256, (length, 128, 128, 3), np.uint8) for name in hello["cameras"]}
            writer.add(signals, shown, task["instruction"])
    return folder


def test_a_served_policy_acts_in_all_of_libero(started: Callable[[str], SimulatorProcess], tmp_path: Path) -> None:
    """Post-trained for four steps on noise: every task is begun, seen, asked about and acted in for 50 steps; success is no matter."""
    with started("libero") as process:
        made = noise_set(tmp_path / "set", process.hello())
    learned = ["--name", "tiny", "--storage.root", str(tmp_path), "--data.robot-sets", str(made), "arm"]
    learned += ["--objective.reads", "all", "--objective.latents", "none"]
    assert shell.main(["posttrain", "tiny_libero_spatial", "--local", "--train.steps", "4", *learned]) == 0
    with served(str(tmp_path / "tiny"), "--convention", "libero") as (_, port, said):
        assert "training rows come back as they were" in said
        words = ["rollouts", "run", f"ws://127.0.0.1:{port}", "--simulator", "libero", "--out", str(tmp_path / "acted")]
        assert shell.main([*words, "--rollouts", "1", "--max-steps", "50", "--videos", "0"]) == 0
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    found = lines(tmp_path / "acted")
    print(json.dumps({arm: [line["success"] for line in found if line["arm"] == arm].count(True) for arm in ASKING}))
    assert (
        len({line["task"] for line in found}) == 40 and len(found) == 80 and not any("error" in line for line in found)
    )
    assert all(line["success"] or (line["steps"], line["asked"]) == (50, 7) for line in found)
    acted = {line["task"]: np.load(tmp_path / f"acted/actions/policy_{line['task']}_seen_0001.npy") for line in found}
    assert all(np.isfinite(actions).all() and actions.std() > 0 for actions in acted.values())
    assert f"jala_serving_requests_total {sum(line['asked'] for line in found)}" in metrics.replace(".0\n", "\n"), (
        metrics
    )


def test_pusht_pushes(started: Callable[[str], SimulatorProcess]) -> None:
    with started("pusht") as process:
        process.reset("push-t", 0, "seen")
        at = process.observe()["state"]["observation.state"]
        process.step(drive="idle", steps=10)
        held = process.observe()
        assert np.abs(held["state"]["observation.state"] - at).max() < 2, "idle holds still"
        assert held["pictures"]["observation.image"].shape == (128, 128, 3)
        process.step(actions=np.tile(at + np.array([60, 0]), (10, 1)).astype(np.float32))
        assert process.observe()["state"]["observation.state"][0] > at[0] + 40
