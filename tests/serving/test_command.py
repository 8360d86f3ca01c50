"""`jala serve` as a user calls it: it starts, serves, refuses, and ends on SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from jala_ray.commands import shell
from jala_ray.serving.conventions import CONVENTIONS
from jala_ray.training.local_head import free_ports
from tests.serving.policies import libero, linear, slow
from tests.serving.wire import Requests, Socket

ROOT = Path(__file__).resolve().parents[2]
POLICY = "tests.serving.policies:linear"


@contextmanager
def served(*words: str) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """(process, port, what it said before it served)."""
    command = [sys.executable, "-m", "jala_ray", "serve", *words, "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=-1, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT)
    assert process.stdout is not None
    said = ""
    try:
        while not (found := re.search(r"^serving at (?:ws|tcp)://127\.0\.0\.1:(\d+)$", said, re.MULTILINE)):
            line = process.stdout.readline()
            assert line, said
            said += line
        yield process, int(found.group(1)), said
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_what_is_in_work_be_answered(number: int, status: int) -> None:
    message, got = libero(np.random.default_rng(0)), list[np.ndarray]()
    with served("tests.serving.policies:slow") as (process, port, said):
        assert "nothing is proven" in said
        with Socket(port) as socket:
            thread = threading.Thread(target=lambda: got.append(socket.infer(message)["actions"]))
            thread.start()
            while b"jala_serving_queue 1.0" not in urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read():
                pass
            process.send_signal(number)
            thread.join(30)
        assert process.wait(30) == status
    np.testing.assert_array_equal(got[0], slow().act(CONVENTIONS["libero"].read(message), None))


def test_it_imports_neither_torch_nor_ray_for_a_policy_that_does_not() -> None:
    program = "import sys; import jala_ray.serving.openpi, jala_ray.serving.groot, jala_ray.serving.running, jala_ray.serving.overlap"
    program += (
        ", jala_ray.serving.client, jala_ray.serving.loading; print([m for m in ('torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_groot_is_served_with_a_token_and_its_metrics_beside_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef\n")
    (metrics,) = free_ports(1)
    words = ("--protocol", "groot", "--token-file", str(tmp_path / "token"), "--metrics-port", str(metrics))
    with served(POLICY, *words) as (process, port, _):
        with Requests(port, "0123456789abcdef") as client:
            assert client.ask("ping")["status"] == "ok"
            told = client.ask("get_modality_config")
            assert set(told) == {"video", "state", "action", "language"}
        text = urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics").read().decode()
        assert "jala_serving_requests_total 0.0" in text
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tests.serving.policies:unproven"], "replay of a training row"),
        (["nowhere:policy"], "No module named 'nowhere'"),
        ([POLICY, "--convention", "liberro"], "Did you mean libero"),
        ([POLICY, "--host", "0.0.0.0"], "--token-file"),
        ([POLICY, "--token-file", "none"], "can be read"),
        ([POLICY, "--max-mib", "0"], "max-mib: got 0"),
        ([POLICY, "--metrics-port", "9"], "metrics-port"),
        ([POLICY, "--protocl", "groot"], "Did you mean --protocol"),
    ],
)
def test_what_can_t_be_served_is_refused_in_a_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell.main(["serve", *words, "--port", "0"] if "--protocl" not in words else ["serve", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_the_policy_of_a_function_is_the_one_that_is_served() -> None:
    message = libero(np.random.default_rng(1))
    with served(POLICY, "--convention", "libero_raw") as (_, port, _), Socket(port) as socket:
        got = socket.infer(message)["actions"]
    np.testing.assert_array_equal(got, linear().act(CONVENTIONS["libero_raw"].read(message), None))
