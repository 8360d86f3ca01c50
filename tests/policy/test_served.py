"""A trained checkpoint behind both servers acts as it does offline, on the data path's own frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jala_ray.commands import shell
from jala_ray.policy import load_policy
from jala_ray.serving.contract import Observation, proven
from jala_ray.serving.conventions import CONVENTIONS, ActionKey, CameraKey, Convention, StateKey
from jala_ray.serving.engine import Engine
from jala_ray.serving.groot import GrootServer
from jala_ray.serving.listening import Listen
from jala_ray.serving.loading import load
from jala_ray.serving.openpi import OpenpiServer
from jala_ray.serving.running import background
from jala_ray.storage import StorageOptions
from tests.policy.test_checkpoint import copied, film
from tests.policy.world import CAMERA, HORIZON, STATE, TASKS, episode, frames_of
from tests.serving.wire import Requests, Socket

LANGUAGE = "annotation.human.task_description"
GROOT = Convention(
    (CameraKey("video.front", CAMERA),), (StateKey("state.place", STATE),), (ActionKey("action.*"),), (LANGUAGE,)
)


def moments(points: Path) -> Iterator[Observation]:
    for number, frame in ((0, 0), (3, 9), (5, 20)):
        one, picture = episode(number), list(frames_of(film(points, number)))[frame]
        yield Observation({CAMERA: picture}, {STATE: one.states[frame].astype(np.float32)}, TASKS[one.task])


@pytest.fixture(scope="module")
def expected(run: Path, points: Path) -> list[np.ndarray]:
    """Offline, one asker's calls one after another."""
    policy, state = load_policy(str(run)), dict[str, int]()
    return [policy.act(one, state) for one in moments(points)]


def test_openpi_s_clients_get_the_offline_actions(run: Path, points: Path, expected: list[np.ndarray]) -> None:
    policy = load(str(run), embodiment="point", options=StorageOptions())
    assert proven(policy)
    convention = CONVENTIONS["lerobot"]
    with background(OpenpiServer(Engine(policy, convention), Listen(0))) as port:
        for _ in range(2):  # who connects anew begins anew
            with Socket(port) as socket:
                assert socket.metadata["action"] == {"action": 2} and socket.metadata["fps"] == 10
                for one, wanted in zip(moments(points), expected, strict=True):
                    np.testing.assert_allclose(
                        socket.infer(convention.write(one))["actions"], wanted, rtol=0, atol=1e-6
                    )


def test_groot_s_clients_get_the_offline_actions(run: Path, points: Path, expected: list[np.ndarray]) -> None:
    policy = load(str(run), embodiment="point", options=StorageOptions())
    with background(GrootServer(Engine(policy, GROOT), Listen(0))) as port, Requests(port) as client:
        for one, wanted in zip(moments(points), expected, strict=True):
            flat = {"video.front": one.pictures[CAMERA][None], "state.place": one.state[STATE][None]}
            answer = client.ask("get_action", flat | {LANGUAGE: [one.instruction]})
            (actions,) = answer.values()
            assert actions.shape == (HORIZON, 2)
            np.testing.assert_allclose(actions, wanted, rtol=0, atol=1e-6)


def test_an_unproven_checkpoint_is_not_served(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served = copied(run, tmp_path, drop="replay.safetensors")
    assert shell.main(["serve", served, "--port", "0"]) == 2
    assert "replay.safetensors" in capsys.readouterr().err
    assert shell.main(["serve", str(run), "--embodiment", "arm", "--port", "0"]) == 2
    assert "one of point" in capsys.readouterr().err
