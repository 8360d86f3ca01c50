"""The ZMQ server, asked by REQ sockets in both forms of GR00T."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from jala_ray.serving.contract import Observation, Policy
from jala_ray.serving.conventions import CONVENTIONS
from jala_ray.serving.engine import Engine
from jala_ray.serving.groot import GrootServer, Release
from jala_ray.serving.listening import Listen
from jala_ray.serving.running import background
from tests.serving.policies import CountingPolicy, LinearPolicy
from tests.serving.test_codec import MALFORMED_NPY
from tests.serving.wire import Requests, groot_pack, groot_unpack

TOKEN = "0123456789abcdef"
WIDTHS, CAMERAS = {"state.arm": 6, "state.gripper": 1}, ("video.ego_view",)
LANGUAGE = "annotation.human.task_description"


@contextmanager
def served(policy: Policy, listen: Listen | None = None, release: Release = "n1.5") -> Iterator[int]:
    engine = Engine(policy, CONVENTIONS["groot"])
    with background(GrootServer(engine, listen or Listen(0, max_bytes=1 << 20), release)) as port:
        yield port


def linear(seconds: float = 0.0) -> LinearPolicy:
    return LinearPolicy(state=WIDTHS, cameras=CAMERAS, seconds=seconds)


def flat(rng: np.random.Generator, *lead: int) -> dict:
    """N1.5's; `lead` is the time, or batch and time."""
    return {
        "video.ego_view": rng.integers(0, 256, (*lead, 12, 16, 3), np.uint8),
        "state.arm": rng.normal(size=(*lead, 6)),
        "state.gripper": rng.normal(size=(*lead, 1)),
        LANGUAGE: ["pick it up"],
    }


def nested(message: dict, batch: int) -> dict:
    return {
        "video": {"ego_view": message["video.ego_view"]},
        "state": {
            "arm": message["state.arm"].astype(np.float32),
            "gripper": message["state.gripper"].astype(np.float32),
        },
        "language": {LANGUAGE: [["pick it up"]] * batch},
    }


def offline(policy: Policy, message: dict, *place: int) -> np.ndarray:
    state = {name: message[name][place].astype(np.float32) for name in WIDTHS}
    return policy.act(Observation({name: message[name][place] for name in CAMERAS}, state, "pick it up"), None)


def test_flat_observations_are_answered_by_parts_of_the_action() -> None:
    policy, message = linear(), flat(np.random.default_rng(0), 2)
    with served(policy) as port, Requests(port) as client:
        answer = client.ask("get_action", message)
    assert {key: value.shape for key, value in answer.items()} == {"action.arm": (16, 6), "action.gripper": (16, 1)}
    whole = np.concatenate([answer["action.arm"], answer["action.gripper"]], axis=1)
    np.testing.assert_allclose(whole, offline(policy, message, -1), rtol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_nested_observations_are_answered_by_actions_and_info(batch: int) -> None:
    policy, message = linear(), flat(np.random.default_rng(1), batch, 1)
    with served(policy) as port, Requests(port) as client:
        actions, info = client.ask("get_action", {"observation": nested(message, batch), "options": None})
        in_flat, _ = client.ask(
            "get_action", {"observation": message | {LANGUAGE: ["pick it up"] * batch}, "options": None}
        )
    assert info == {} and {k: v.shape for k, v in actions.items()} == {"arm": (batch, 16, 6), "gripper": (batch, 16, 1)}
    assert {k: v.shape for k, v in in_flat.items()} == {"action.arm": (batch, 16, 6), "action.gripper": (batch, 16, 1)}
    for place in range(batch):
        expected = offline(policy, message, place, -1)
        np.testing.assert_allclose(np.concatenate([actions["arm"], actions["gripper"]], 2)[place], expected, rtol=1e-6)


def test_ping_is_answered_while_a_policy_computes_for_two_seconds() -> None:
    policy = linear(seconds=2.0)
    with served(policy) as port, Requests(port) as robot, Requests(port) as other:
        robot.socket.send(groot_pack({"endpoint": "get_action", "data": flat(np.random.default_rng(2), 1)}))
        assert policy.begun.wait(10)
        begun = time.perf_counter()
        assert other.ask("ping") == {"status": "ok", "message": "Server is running"}
        assert time.perf_counter() - begun < 1.0 and not policy.seen
        assert groot_unpack(robot.socket.recv())["action.arm"].shape == (16, 6)


def test_each_client_has_its_own_state_and_reset_forgets_it() -> None:
    policy, message = CountingPolicy(state=WIDTHS, cameras=CAMERAS), flat(np.random.default_rng(3), 1)
    with served(policy) as port, Requests(port) as one, Requests(port) as other:
        calls = [client.ask("get_action", message)["action.arm"][0, 0] for client in (one, one, other)]
        assert calls == [1, 2, 1]
        assert one.ask("reset", {"options": None}) == {}
        assert [client.ask("get_action", message)["action.arm"][0, 0] for client in (one, other)] == [1, 2]


def test_the_modalities_are_told_in_the_form_that_was_chosen() -> None:
    with served(linear()) as port, Requests(port) as client:
        told = client.ask("get_modality_config")
    assert set(told) == {"video", "state", "action", "language"}
    assert all(entry["__ModalityConfig_class__"] for entry in told.values())
    assert json.loads(told["state"]["as_json"]) == {
        "delta_indices": [0],
        "modality_keys": ["state.arm", "state.gripper"],
    }
    assert json.loads(told["action"]["as_json"])["delta_indices"] == list(range(16))
    with served(linear(), release="newer") as port, Requests(port) as client:
        told = client.ask("get_modality_config")
    assert told["action"]["as_json"] == {"delta_indices": list(range(16)), "modality_keys": ["arm", "gripper"]}


def test_kill_ends_a_server_of_this_machine_alone() -> None:
    engine = Engine(linear(), CONVENTIONS["groot"])
    with background(GrootServer(engine, Listen(0))) as port, Requests(port) as client:
        assert client.ask("kill")["status"] == "ok"
    with served(linear(), Listen(0, "0.0.0.0", TOKEN)) as port, Requests(port, TOKEN) as client:
        assert "kill" in client.ask("kill")["error"] and client.ask("ping")["status"] == "ok"


def test_a_token_is_asked_for() -> None:
    with served(linear(), Listen(0, token=TOKEN)) as port:
        for token in (None, "wrong"):
            with Requests(port, token) as client:
                assert client.ask("ping") == {"error": "Unauthorized: Invalid API token"}
        with Requests(port, TOKEN) as client:
            assert client.ask("ping")["status"] == "ok"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served(linear()) as found:
        yield found


@pytest.mark.parametrize("data", MALFORMED_NPY, ids=range(len(MALFORMED_NPY)))
def test_a_malformed_message_is_answered_by_an_error(data: bytes, port: int) -> None:
    with Requests(port) as client:
        assert set(client.raw(data)) == {"error"}
        assert client.ask("ping")["status"] == "ok"


@pytest.mark.parametrize(
    ("endpoint", "data", "said"),
    [
        ("get_acton", {}, "endpoint"),
        (["get_action"], {}, "endpoint"),
        ("get_action", [1], "an observation"),
        ("get_action", {}, "video.x"),
        ("get_action", {"state.arm": np.zeros(6)}, "video.x"),
        ("get_action", {"state.arm": np.zeros((0, 6))}, "video.x"),
        (
            "get_action",
            {"video": {"a": np.zeros((2, 1, 2, 2, 3), np.uint8)}, "state": {"arm": np.zeros((1, 1, 6))}},
            "same size",
        ),
        ("get_action", {"video.ego_view": np.zeros((1, 2, 2, 3), np.uint8), LANGUAGE: ["x"]}, "state.arm"),
        ("get_action", {"state.arm": np.zeros((257, 1, 6), np.float32)}, "256 at most"),
    ],
)
def test_a_bad_request_is_answered_by_an_error_that_names_it(endpoint, data, said: str, port: int) -> None:
    with Requests(port) as client:
        assert said in client.ask(endpoint, data)["error"]
