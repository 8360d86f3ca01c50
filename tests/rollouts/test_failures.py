"""A simulator that dies, hangs or sends garbage: an error of that rollout alone, tried twice, and named."""

from __future__ import annotations

import io
import json
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from jala_ray.rollouts.environments import start_of
from jala_ray.rollouts.process import SimulatorFailed, SimulatorProcess, SimulatorStart
from jala_ray.rollouts.workers import wire
from tests.rollouts.asked import WORLD, lines, run

BAD_NUMBER = 4
"""Of the rollout with the seed at which the world misbehaves."""


@pytest.mark.parametrize(
    ("task", "said"), [("dies", "signal 6"), ("hangs", "no answer in time"), ("garbles", "no message begins with")]
)
def test_one_rollout_fails_and_the_others_do_not(
    task: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    found = run(tmp_path, "--rollouts", "6", "--answer-s", "1", tasks=(task,), status=1)
    assert time.monotonic() - begun < 60
    assert [one["rollout"] for one in found["failed"]] == [
        f"{arm}, {task}, seen, {BAD_NUMBER}" for arm in ("policy", "blind")
    ]
    assert all(said in one["error"] and "2 attempts" in one["error"] for one in found["failed"])
    assert found["success"]["policy"][task]["seen"]["count"] == 5 == found["success"]["policy"][task]["seen"]["of"]
    assert "2 rollouts failed by their simulator" in capsys.readouterr().out
    before = len(lines(tmp_path))
    run(tmp_path, "--rollouts", "6", "--answer-s", "1", tasks=(task,), status=1)
    assert len(lines(tmp_path)) == before + 2, "they alone are tried again"


def test_what_fails_once_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUMBLED", str(tmp_path / "stumbled"))
    found = run(tmp_path / "out", "--rollouts", "6", tasks=("stumbles",))
    assert (tmp_path / "stumbled").is_file() and not found["failed"]
    assert found["success"]["policy"]["stumbles"]["seen"]["count"] == 6


def test_what_a_simulator_said_last_is_in_the_error(tmp_path: Path) -> None:
    file = tmp_path / "none.py"
    file.write_text("import a_package_that_is_not_there\n")
    with SimulatorProcess(start_of(str(file))) as process, pytest.raises(SimulatorFailed) as error:
        process.hello()
    assert "No module named 'a_package_that_is_not_there'" in str(error.value) and "exit status 1" in str(error.value)
    with pytest.raises(SimulatorFailed, match="a Python that starts"):
        SimulatorProcess(SimulatorStart("/nowhere/python", str(file)))


def test_a_process_ends_with_its_run() -> None:
    process = SimulatorProcess(start_of(WORLD))
    process.hello()
    assert process.process.stdin is not None
    process.process.stdin.close()  # as the system closes it when a run is killed
    assert process.process.wait(20) == 0


def test_an_error_of_the_world_is_told_and_ends_the_process() -> None:
    process = SimulatorProcess(start_of(WORLD))
    with pytest.raises(SimulatorFailed, match="is no question"):
        process.ask("dance")
    assert process.process.poll() is not None


def test_messages_come_back_as_they_were() -> None:
    rng = np.random.default_rng(0)
    message = {
        "a": rng.normal(size=(3, 2)),
        "b": {"c": np.zeros((2, 0), np.uint8), "d": [np.arange(3, dtype=np.int32), None, "é"]},
        "e": np.float32(0.5),
        "f": np.array(True),
    }
    found = wire.received(io.BytesIO(b"".join(wire.packed(message))).read)
    np.testing.assert_array_equal(found["a"], message["a"])
    assert found["b"]["c"].shape == (2, 0) and found["b"]["d"][1:] == [None, "é"] and found["e"] == 0.5
    assert found["b"]["d"][0].dtype == np.int32 and found["f"].shape == () and found["f"]


def told(head: dict[str, object], body: bytes = b"") -> bytes:
    text = json.dumps(head).encode()
    return struct.pack("<4sIQ", b"JSIM", len(text), len(body)) + text + body


@pytest.mark.parametrize(
    "data",
    [
        b"Traceback (most recent call last)",
        struct.pack("<4sIQ", b"JSIM", 1 << 30, 0),
        told({"message": {}, "arrays": [["|O", [1]]]}, bytes(8)),
        told({"message": {}, "arrays": [["<f8", [1 << 40]]]}, bytes(8)),
        told({"message": {}, "arrays": [["<f8", [-1]]]}, bytes(8)),
        told({"message": {}, "arrays": []}, bytes(8)),
        told({"message": {"x": {"$": 4}}, "arrays": []}),
        told({"message": 3, "arrays": []}),
        struct.pack("<4sIQ", b"JSIM", 3, 0) + b"{{{",
    ],
)
def test_garbage_is_no_message(data: bytes) -> None:
    with pytest.raises(wire.Garbled):
        wire.received(io.BytesIO(data).read)


def test_nothing_of_ours_is_told_to_the_other_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    file = tmp_path / "sees.py"
    text = Path(WORLD).read_text().replace("    def idle", "    def x")
    file.write_text(
        text + '\n    def versions(self) -> dict:\n        return {"path": os.environ.get("PYTHONPATH", "none")}\n'
    )
    with SimulatorProcess(start_of(str(file))) as process:
        assert process.hello()["versions"]["path"] == "none" and os.environ["PYTHONPATH"] == "/ours"
