"""Two robot sets of two embodiments through `jala posttrain`: statistics, rows, layers and policies of each."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jala_ray.commands import shell
from jala_ray.config import RunConfig
from jala_ray.data.robots.rows import RowReader
from jala_ray.data.robots.sets import RobotSet, open_sets
from jala_ray.data.robots.split import held_out
from jala_ray.data.robots.write import RobotLayout, RobotWriter
from jala_ray.data.sampling.plan import rows_digest
from jala_ray.parsing import to_dict
from jala_ray.policy import load_policy
from jala_ray.policy.checkpoint import CheckpointPolicy
from jala_ray.serving.contract import Observation, proven
from jala_ray.training import checkpoint, setup
from jala_ray.training.build import build_learner
from jala_ray.types import ConfigError
from tests.policy.world import ACTION, CAMERA, FPS, HORIZON, STATE, TASKS, settings, shown, write_points
from tests.training.test_loop import rows

STEPS, BATCH, LENGTH, JOINTS, ARM_FPS = 160, 32, 18, 5, 20
WIDTHS = {"arm": JOINTS, "point": 2}
SHARES = {"arms": 3.0, "points": 1.0}
"""Of the sets, by the ends of their addresses."""


def write_arms(folder: Path, episodes: int = 8) -> Path:
    """Another robot: more joints, another rate, larger numbers, which it brings to 0; LeRobot v3.0."""
    layout = RobotLayout(ARM_FPS, {STATE: JOINTS, ACTION: JOINTS}, {CAMERA: (64, 64)}, robot="arm")
    with RobotWriter(folder, layout) as writer:
        for number in range(episodes):
            rng = np.random.default_rng(50 + number)
            joints, states = rng.uniform(-30, 30, JOINTS), []
            for _ in range(LENGTH + 1):
                states.append(joints)
                joints = 0.9 * joints
            path, picture = np.stack(states).astype(np.float32), shown(states[0][:2] / 30)
            signals = {STATE: path[:-1], ACTION: path[1:]}
            writer.add(signals, {CAMERA: np.stack([picture] * LENGTH)}, TASKS[number % 2])
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    place = tmp_path_factory.mktemp("two")
    sets = ((str(write_arms(place / "arms")), "arm"), (str(write_points(place / "points")), "point"))
    more = {"data__robot_sets": sets, "data__source_weights": tuple(SHARES.items()), "data__held_out_episodes": 0.25}
    more |= {"train__steps": STEPS, "train__log_every": 1, "train__checkpoint_every": STEPS, "train__average": 0.0}
    sizes = {"embodiments": 3, "width": 64, "layers": 4, "heads": 4, "hidden": 32, "future_tokens": 0, "dropout": 0.0}
    more |= {f"objective__head__{name}": size for name, size in sizes.items()}
    more |= {"train__batch": BATCH, "train__micro_batch": BATCH, "objective__learns": "head", "optim__lr": 5e-3}
    more |= {"objective__views": (), "objective__augment__on": False}
    config = settings(place / "runs", place / "points", "two", **more)
    (place / "two.json").write_text(json.dumps(to_dict(config)))
    assert shell.main(["posttrain", str(place / "two.json"), "--local"]) == 0
    return config


def folder_of(config: RunConfig) -> str:
    return setup.run_folder(config)


def test_statistics_are_of_each_robot_s_training_rows(trained: RunConfig) -> None:
    loaded = checkpoint.load(folder_of(trained))
    found = loaded.assets.statistics
    assert found is not None and found.fps == {"arm": ARM_FPS, "point": FPS}
    assert set(found.signals) == {f"{robot}:{name}" for robot in WIDTHS for name in (STATE, ACTION)}
    for of in open_sets(trained.data.robot_sets).sets:
        kept, reader = np.flatnonzero(~held_out(of, 0.25)), RowReader((STATE, ACTION))
        values = np.concatenate([reader.episode(of, place).signal(of, ACTION).values for place in kept.tolist()])
        own = found.signals[f"{of.embodiment}:{ACTION}"]
        assert own.size == WIDTHS[of.embodiment] and own.values == len(values)
        np.testing.assert_allclose(own.mean, values.astype(np.float64).mean(0), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(own.q99, np.quantile(values.astype(np.float64), 0.99, axis=0), rtol=1e-6)


def test_each_set_has_its_share_of_the_rows_that_were_trained(trained: RunConfig) -> None:
    """Counted of the run's own plan, whose digests are those that training logged."""
    plan = setup.plans(trained, f"{folder_of(trained)}/assets").train.plan
    sets, counts = open_sets(trained.data.robot_sets), Counter[str]()
    logged = rows(folder_of(trained))
    for step in range(STEPS):
        drawn = plan.share(step, 0, 1)
        counts.update(sets.sets[sets.anchor(row.index).set].name for row in drawn)
        digest = rows_digest(drawn[0].epoch, np.array([row.plan_row for row in drawn]))
        assert logged[step]["rows_digest"] == f"{digest % 2**64:016x}", step
    total = sum(counts.values())
    assert total == logged[-1]["samples"] > 0.9 * BATCH * STEPS, "an epoch's last step holds what is left"
    assert counts["arms"] == pytest.approx(0.75 * total, abs=0.5 * BATCH) and set(counts) == set(SHARES)


def test_both_are_learned_and_no_third(trained: RunConfig) -> None:
    """Layers of either robot have moved from where they began, those of others have not; and either's actions are nearer to what was done
    in held-out episodes than those of the same model before its first step.
    """
    loaded = checkpoint.load(folder_of(trained))
    begun, ended = build_learner(trained, loaded.assets).state_dict(), loaded.learner.state_dict()
    for number, learns in ((0, True), (1, True), (2, False)):
        own = [name for name in ended if f".each.{number}." in name]
        assert len(own) >= 10
        assert all(torch.equal(begun[name], ended[name]) != learns for name in own), number
    before = replace(loaded, learner=build_learner(trained, loaded.assets))
    for of in open_sets(trained.data.robot_sets).sets:
        untrained, learned = (error(CheckpointPolicy(one, of.embodiment), of) for one in (before, loaded))
        assert learned < 0.8 * untrained, (of.name, learned, untrained)
    assert rows(folder_of(trained))[-1]["quarantined"] == 0


def error(policy: CheckpointPolicy, of: RobotSet) -> float:
    """Mean absolute error at some moments of held-out episodes."""
    reader, found = RowReader((STATE, ACTION)), []
    for place in np.flatnonzero(held_out(of, 0.25)).tolist():
        read = reader.episode(of, place)
        states, truth = (read.signal(of, name).values for name in (STATE, ACTION))
        for frame in range(0, len(truth) - HORIZON, 4):
            seen = Observation({}, {STATE: states[frame]}, TASKS[0])
            found.append(np.abs(policy.act(seen) - truth[frame : frame + HORIZON]).mean())
    return float(np.mean(found))


@pytest.mark.parametrize("robot", WIDTHS)
def test_a_policy_acts_for_each_in_its_own_units(trained: RunConfig, robot: str) -> None:
    policy = load_policy(folder_of(trained), robot)
    assert proven(policy) and policy.metadata["embodiment"] == robot
    assert policy.metadata["action"] == {ACTION: WIDTHS[robot]}
    assert policy.metadata["fps"] == (ARM_FPS if robot == "arm" else FPS)
    state = {STATE: np.zeros(WIDTHS[robot], np.float32)}
    actions = policy.act(Observation({}, state, TASKS[0]))
    assert actions.shape == (HORIZON, WIDTHS[robot])
    assert (np.abs(actions).max() > 5) == (robot == "arm"), "the arm goes by tens, the point stays within 1"


def test_which_robot_must_be_said(trained: RunConfig) -> None:
    with pytest.raises(ConfigError, match="one of arm, point"):
        load_policy(folder_of(trained))
