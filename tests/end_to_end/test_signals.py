"""Local training that is told to stop: with Ctrl-C, and with SIGTERM as `timeout` and schedulers send it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jala_ray.storage import StorageOptions
from jala_ray.training import lease
from tests.end_to_end.conftest import World

ROOT = Path(__file__).resolve().parents[2]
STARTS = {
    "jala": ["-m", "jala_ray", "pretrain", "tiny", "--local"],
    "module": ["-m", "jala_ray.training.local", "tiny"],
}


@pytest.mark.parametrize(
    ("start", "number"), [("jala", signal.SIGTERM), ("jala", signal.SIGINT), ("module", signal.SIGTERM)]
)
def test_a_stop_ends_everything_in_a_line(start: str, number: int, world: World, tmp_path: Path) -> None:
    words = ["--name", "run", "--storage.root", str(tmp_path), "--data.manifest", world.manifest]
    words += [
        "--motion-tokenizer",
        world.tokenizer,
        "--train.steps",
        "100000",
        "--train.batch",
        "2",
        "--train.micro-batch",
        "2",
    ]
    words += ["--train.log-every", "1", "--train.val-samples", "0", "--log.tensorboard", "False", "--data.workers", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *STARTS[start], *words],
            stdout=log,
            stderr=log,
            env=environment,
            cwd=tmp_path,
            start_new_session=True,
        )
    try:
        wait(lambda: process.poll() is not None or len(below(process)) >= 4)  # tracker, forkserver, two that read
        assert process.poll() is None, said(tmp_path)
        children = below(process)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        status = process.wait(60)
        wait(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    finally:
        with_children_gone(process)
    lines = said(tmp_path).splitlines()
    assert lines[0].endswith("a line every 1 steps") and "100000 steps from step 0" in lines[0]
    assert status == {signal.SIGTERM: 143, signal.SIGINT: 130}[signal.Signals(number)]
    assert "Traceback" not in said(tmp_path)
    beat = lease.last_sign(str(tmp_path / "run"), StorageOptions())
    assert beat is not None and beat.released, "the next attempt need not wait"


def below(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def said(folder: Path) -> str:
    return (folder / "log").read_text()


def wait(until, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def with_children_gone(process: subprocess.Popen[bytes]) -> None:
    """Whatever went wrong, nothing of it stays."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
