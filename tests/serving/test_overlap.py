"""A robot's loop beside a slow policy: which action stands at which step, and when it waits."""

from __future__ import annotations

import time

import numpy as np
import pytest

from jala_ray.serving.overlap import Overlap
from jala_ray.types import ConfigError

TICK_S = 0.03


class Told:
    """Its actions say for which step they were computed, and from which observation."""

    def __init__(self, horizon: int, seconds: float = 0.0, slow_at: int = -1) -> None:
        self.horizon, self.seconds, self.slow_at, self.asked = horizon, seconds, slow_at, list[int]()

    def act(self, step: int) -> np.ndarray:
        self.asked.append(step)
        time.sleep(10 * TICK_S if step == self.slow_at else self.seconds)
        return np.array([[step + i, step] for i in range(self.horizon)], float)


def run(loop: Overlap[int], steps: int) -> tuple[np.ndarray, list[float]]:
    """(actions, seconds that each step took to give one) of a robot that ticks."""
    actions, took = [], []
    due = time.perf_counter()
    for step in range(steps):
        begun = time.perf_counter()
        actions.append(loop.step(lambda step=step: step))
        took.append(time.perf_counter() - begun)
        due = max(due, begun) + TICK_S
        time.sleep(max(0.0, due - time.perf_counter()))
    loop.close()
    return np.array(actions), took


def test_the_robot_never_waits_after_the_first_chunk() -> None:
    """Inference of 3 ticks, within chunks of 5: every step has its action, at once."""
    policy = Told(horizon=10, seconds=3 * TICK_S)
    loop = Overlap(policy.act, execute=5, ahead=5)
    actions, took = run(loop, 40)
    assert (loop.waited, loop.late) == (0, 0)
    assert took[0] >= policy.seconds and max(took[1:]) < policy.seconds
    assert policy.asked == list(range(0, 40, 5))
    assert actions[:, 0].tolist() == list(range(40)), "an action is executed at the step that it was computed for"
    assert actions[:, 1].tolist() == [0] * 10 + [5 * (step // 5 - 1) for step in range(10, 40)]


def test_chunks_are_switched_ahead_steps_after_their_observation() -> None:
    policy = Told(horizon=12)
    loop = Overlap(policy.act, execute=8, ahead=2)
    actions, _ = run(loop, 30)
    assert actions[:, 0].tolist() == list(range(30))
    assert actions[:, 1].tolist() == [0] * 10 + [8] * 8 + [16] * 8 + [24] * 4


def test_a_late_chunk_is_covered_by_the_rest_of_the_old_one() -> None:
    policy = Told(horizon=30, seconds=TICK_S, slow_at=8)
    loop = Overlap(policy.act, execute=8, ahead=4)
    actions, took = run(loop, 40)
    assert loop.waited == 0 and loop.late >= 4 and max(took[1:]) < 5 * TICK_S
    assert actions[:, 0].tolist() == list(range(40))


def test_a_robot_waits_where_nothing_is_left_and_goes_on_in_step() -> None:
    policy = Told(horizon=12, seconds=TICK_S, slow_at=8)
    loop = Overlap(policy.act, execute=8, ahead=4)
    actions, _ = run(loop, 40)
    assert loop.waited == 1
    assert actions[:, 0].tolist() == list(range(40))


def test_a_policy_that_is_always_too_slow_still_gives_every_step_its_own_action() -> None:
    policy = Told(horizon=6, seconds=8 * TICK_S)
    loop = Overlap(policy.act, execute=3, ahead=3)
    actions, _ = run(loop, 25)
    assert loop.waited > 0 and actions[:, 0].tolist() == list(range(25))


def test_an_error_of_the_policy_reaches_the_robot_and_short_chunks_are_refused() -> None:
    def fail(_: int) -> np.ndarray:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        Overlap(fail, execute=2, ahead=1).step(lambda: 0)
    with pytest.raises(ConfigError, match="at least 9"):
        Overlap(Told(horizon=8).act, execute=6, ahead=3).step(lambda: 0)
    for ahead in (0, 7):
        with pytest.raises(ConfigError, match="ahead"):
            Overlap(Told(horizon=8).act, execute=6, ahead=ahead)


def test_a_patient_loop_waits_for_a_late_chunk() -> None:
    """As simulators do: the same actions whatever the policy's speed, though the old chunk has some left."""
    slow, quick = Told(horizon=20, slow_at=8), Told(horizon=20)
    found = [run(Overlap(policy.act, execute=4, ahead=1, patient=True), 16)[0] for policy in (slow, quick)]
    np.testing.assert_array_equal(*found)
    loop = Overlap(Told(horizon=20, slow_at=8).act, execute=4, ahead=1)
    covered, _ = run(loop, 16)
    assert loop.late and not np.array_equal(covered, found[1]), "a robot's own loop goes on with the old chunk"
