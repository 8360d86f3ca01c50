"""The websocket server, asked over its port by a client that was written from the published format."""

from __future__ import annotations

import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import connect

from jala_ray.serving.client import PolicyClient, ServingError
from jala_ray.serving.contract import Policy
from jala_ray.serving.conventions import CONVENTIONS
from jala_ray.serving.engine import Engine
from jala_ray.serving.listening import Listen, read_token
from jala_ray.serving.openpi import OpenpiServer
from jala_ray.serving.running import background
from jala_ray.types import ConfigError
from tests.serving.policies import CountingPolicy, LinearPolicy, libero
from tests.serving.test_codec import MALFORMED
from tests.serving.wire import Socket, openpi_pack

TOKEN = "0123456789abcdef"
CAMERAS = ("observation.images.image", "observation.images.wrist_image")


@contextmanager
def served(policy: Policy, token: str | None = None, max_bytes: int = 1 << 20) -> Iterator[int]:
    engine = Engine(policy, CONVENTIONS["libero"])
    with background(OpenpiServer(engine, Listen(0, token=token, max_bytes=max_bytes))) as port:
        yield port


def offline(policy: Policy, message: dict) -> np.ndarray:
    return policy.act(CONVENTIONS["libero"].read(message), None)


def get(port: int, path: str, **headers: str) -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers["Content-Type"]


def metric(port: int, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", get(port, "/metrics")[1], re.MULTILINE)
    assert found is not None, name
    return float(found.group(1))


def test_the_server_acts_as_the_policy_does_offline() -> None:
    policy, rng = LinearPolicy(cameras=CAMERAS), np.random.default_rng(0)
    with served(policy) as port, Socket(port) as socket:
        assert socket.metadata["state"] == {"observation.state": 8} and socket.metadata["fps"] == 20
        for place, size in enumerate((8, 224, 3)):
            message = libero(rng, size)
            answer = socket.infer(message)
            np.testing.assert_allclose(answer["actions"], offline(policy, message), rtol=1e-6)
            assert answer["actions"].dtype == np.float32 and answer["actions"].shape == (16, 7)
            np.testing.assert_array_equal(answer["state"], message["observation/state"].astype(np.float32))
            assert set(answer["policy_timing"]) == {"infer_ms"}
            assert set(answer["server_timing"]) == {"infer_ms", *(["prev_total_ms"] if place else [])}
        assert metric(port, "jala_serving_requests_total") == 3
        assert metric(port, "jala_serving_inference_seconds_count") == 3
        assert metric(port, "jala_serving_connections") == 1


def test_our_own_client_speaks_it_too() -> None:
    policy, message = LinearPolicy(), libero(np.random.default_rng(1))
    with served(policy, TOKEN) as port:
        client = PolicyClient(f"ws://127.0.0.1:{port}", TOKEN)
        np.testing.assert_array_equal(client.act(message), offline(policy, message))
        with pytest.raises(ServingError, match="observation/state"):
            client.infer({"prompt": "x"} | {k: v for k, v in message.items() if "image" in k})
        client.close()


def test_the_loop_is_free_while_a_policy_computes_for_two_seconds() -> None:
    policy, message = LinearPolicy(seconds=2.0), libero(np.random.default_rng(2))
    with served(policy) as port, Socket(port) as first:
        first.send(message)
        assert policy.begun.wait(10)
        begun = time.perf_counter()
        assert get(port, "/healthz") == (200, "OK\n", "text/plain; charset=utf-8")
        with Socket(port) as second:
            assert second.metadata["fps"] == 20
            assert metric(port, "jala_serving_queue") == 1
        assert time.perf_counter() - begun < 1.0 and not policy.seen
        assert first.answer()["policy_timing"]["infer_ms"] >= 2000


def test_observations_wait_in_their_order_and_none_is_dropped() -> None:
    policy, alike, rng = LinearPolicy(seconds=0.05), LinearPolicy(), np.random.default_rng(3)
    messages = [libero(rng) for _ in range(6)]
    with served(policy) as port, Socket(port) as one, Socket(port) as other:
        for message in messages[:4]:
            one.send(message)  # without waiting for an answer
        assert policy.begun.wait(10)
        for message in messages[4:]:
            other.send(message)
        for message in messages[:4]:
            np.testing.assert_allclose(one.answer()["actions"], offline(alike, message), rtol=1e-6)
        for message in messages[4:]:
            np.testing.assert_allclose(other.answer()["actions"], offline(alike, message), rtol=1e-6)
        own = [m["observation/state"].astype(np.float32).tolist() for m in messages]
        order = [own.index(seen.state["observation.state"].tolist()) for seen in policy.seen]
        assert [i for i in order if i < 4] == [0, 1, 2, 3] and [i for i in order if i >= 4] == [4, 5]


def test_what_a_policy_keeps_is_the_connection_s_own() -> None:
    message = libero(np.random.default_rng(4))
    with served(CountingPolicy()) as port, Socket(port) as one, Socket(port) as other:
        calls = [socket.infer(message)["actions"][0, 0] for socket in (one, one, other, one)]
        assert calls == [1, 2, 1, 3]
        with Socket(port) as later:
            assert later.infer(message)["actions"][0, 0] == 1


@pytest.mark.parametrize("data", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_frame_ends_its_connection_alone(data: bytes, malformed_port: int) -> None:
    message = libero(np.random.default_rng(5))
    with Socket(malformed_port) as other:
        with Socket(malformed_port) as socket:
            socket.socket.send(data)
            assert isinstance(socket.received(), str)
            with pytest.raises(ConnectionClosedError) as ended:
                socket.received()
            assert ended.value.rcvd is not None and ended.value.rcvd.code == 1011
        assert other.infer(message)["actions"].shape == (16, 7)


@pytest.fixture(scope="module")
def malformed_port() -> Iterator[int]:
    with served(LinearPolicy()) as port:
        yield port


def test_a_text_frame_a_number_and_a_wrong_key_are_errors_that_say_so(malformed_port: int) -> None:
    for data, said in (
        ("hello", "message"),
        (openpi_pack(5), "map of keys"),
        (openpi_pack({"prompt": "x"}), "observation/image"),
    ):
        with Socket(malformed_port) as socket:
            socket.socket.send(data)
            answer = socket.received()
            assert isinstance(answer, str) and said in answer and "Traceback" not in answer


def test_a_message_that_is_too_large_is_refused() -> None:
    with served(LinearPolicy(), max_bytes=10_000) as port, Socket(port) as socket:
        socket.send(libero(np.random.default_rng(6), size=100))
        with pytest.raises(ConnectionClosedError) as ended:
            socket.received()
        assert ended.value.rcvd is not None and ended.value.rcvd.code == 1009
        assert get(port, "/healthz")[0] == 200


class Failing(LinearPolicy):
    def act(self, observation, state):
        if observation.instruction == "nan":
            return np.full((16, 7), np.nan)
        raise RuntimeError("no memory is left")


def test_an_error_of_the_policy_is_told_and_counted_and_no_nan_reaches_a_robot() -> None:
    message = libero(np.random.default_rng(7))
    with served(Failing()) as port:
        for instruction, said in (("x", "RuntimeError: no memory is left"), ("nan", "not finite")):
            with Socket(port) as socket:
                socket.send(message | {"prompt": instruction})
                assert said in socket.received()
        assert metric(port, 'jala_serving_errors_total{kind="failed"}') == 1
        assert metric(port, 'jala_serving_errors_total{kind="refused"}') == 1
        assert metric(port, "jala_serving_queue") == 0


def test_who_has_no_token_learns_nothing_but_health() -> None:
    with served(LinearPolicy(), TOKEN) as port:
        for headers in (
            {},
            {"Authorization": "Api-Key wrong"},
            {"Authorization": TOKEN},
            {"Authorization": f"Bearer {TOKEN}"},
        ):
            with pytest.raises(InvalidStatus, match="401"):
                Socket(port, headers)
            assert get(port, "/metrics", **headers)[0] == 401
        assert get(port, "/healthz")[0] == 200
        with Socket(port, {"Authorization": f"Api-Key {TOKEN}"}) as socket:
            assert socket.infer(libero(np.random.default_rng(8)))["actions"].shape == (16, 7)
        status, text, kind = get(port, "/metrics", Authorization=f"Api-Key {TOKEN}")
        assert status == 200 and "# TYPE jala_serving_requests_total counter" in text and kind.startswith("text/plain")


def test_a_page_of_a_browser_can_t_ask_a_policy() -> None:
    with served(LinearPolicy()) as port, pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{port}", origin="http://somewhere.example")  # pyright: ignore[reportArgumentType]


def test_beyond_this_machine_a_token_is_demanded(tmp_path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "robot.local"):
        with pytest.raises(ConfigError, match="--token-file"):
            Listen(0, host)
        assert not Listen(0, host, TOKEN).local
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert Listen(0, host).local
    assert TOKEN not in repr(Listen(0, token=TOKEN))
    file = tmp_path / "token"
    for text in ("", "short", "0123456789abcdef\nmore", "ä" * 20):
        file.write_text(text)
        with pytest.raises(ConfigError, match="openssl"):
            read_token(str(file))
    file.write_text(f"{TOKEN}\n")
    assert read_token(str(file)) == TOKEN
    with pytest.raises(ConfigError, match="can be read"):
        read_token(str(tmp_path / "none"))


def test_a_stop_lets_what_is_in_work_be_answered() -> None:
    policy, message = LinearPolicy(seconds=0.5), libero(np.random.default_rng(9))
    with ThreadPoolExecutor(1) as pool:
        with served(policy) as port:
            socket, idle = Socket(port), Socket(port)
            answer = pool.submit(socket.infer, message)
            assert policy.begun.wait(10)
        np.testing.assert_allclose(answer.result(10)["actions"], offline(policy, message), rtol=1e-6)
    for ended in (socket, idle):
        with pytest.raises(ConnectionClosedOK) as closed:
            ended.received()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001


def test_who_has_gone_is_not_computed_for() -> None:
    policy, rng = LinearPolicy(seconds=0.3), np.random.default_rng(10)
    with served(policy) as port, Socket(port) as one:
        one.send(libero(rng))
        assert policy.begun.wait(10)
        with Socket(port) as gone:
            gone.send(libero(rng))
            while metric(port, "jala_serving_queue") < 2:
                time.sleep(0.01)
        one.answer()
        one.infer(libero(rng))
        assert len(policy.seen) == 2


def test_a_port_that_is_taken_and_metadata_that_nobody_can_read_are_errors() -> None:
    with served(LinearPolicy()) as port, pytest.raises(ConfigError, match="free here"):
        engine = Engine(LinearPolicy(), CONVENTIONS["libero"])
        with background(OpenpiServer(engine, Listen(port))):
            pass
    policy = LinearPolicy()
    policy.metadata["loaded"] = threading.Lock()
    with pytest.raises(ConfigError, match="metadata"):
        OpenpiServer(Engine(policy, CONVENTIONS["libero"]), Listen(0))


def test_an_observation_that_the_policy_has_not_learned_is_refused() -> None:
    policy = LinearPolicy(cameras=("observation.images.head",))
    with served(policy) as port, Socket(port) as socket:
        socket.send(libero(np.random.default_rng(11)))
        answer = socket.received()
        assert "observation.images.head" in answer and "--convention" in answer
    with served(LinearPolicy(state={"observation.state": 6})) as port, Socket(port) as socket:
        socket.send(libero(np.random.default_rng(12)))
        assert "8 values, expected 6" in socket.received().replace("'", "")
