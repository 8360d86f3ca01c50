"""A wait is told after the patience and at doubled times, with rank, reason and beginning; a short one is not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch.multiprocessing as mp

from jala_ray.training.watch import Reminders, Watch, pause
from tests.training.run import stalling

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 0.24


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def watch() -> tuple[Watch, list[str]]:
    said: list[str] = []
    return Watch(PATIENCE, said.append, rank=1, world=4), said


def test_reminders_come_at_doubled_times() -> None:
    reminders = Reminders(60.0)
    told = [t for t in range(0, 1000, 5) if reminders.due({"a": float(t)})]
    assert told == [60, 120, 240, 480, 960]
    assert reminders.due({"a": 961.0, "b": 60.0}) == {"b": 60.0}
    assert reminders.ended({"a": 962.0}) == ["b"] and reminders.ended({"a": 963.0}) == []
    assert reminders.due({"b": 59.0}) == {} and reminders.due({"b": 61.0}) == {"b": 61.0}


def test_what_lasts_is_told_with_rank_reason_and_beginning() -> None:
    waits, said = watch()
    with waits.waiting_for("the checkpoint of step 12"), waits.waiting_for("the upload of model.safetensors"):
        until(lambda: len(said) >= 2)
    until(lambda: said[-1].startswith("rank 1 of 4 goes on after "))
    assert said[0].startswith("rank 1 of 4 has waited 0 s for the checkpoint of step 12 (since ")
    assert said[0].endswith("), now for the upload of model.safetensors")
    assert said[-1].endswith(": the checkpoint of step 12")


def test_what_is_quick_or_over_is_not_told() -> None:
    waits, said = watch()
    end = time.monotonic() + 3 * PATIENCE
    while time.monotonic() < end:  # many waits in a row are no long one
        with waits.waiting_for("the data of a step"):
            time.sleep(pause(PATIENCE) / 4)
    time.sleep(PATIENCE / 2)
    assert said == [] and waits.waits == {}


def test_threads_and_errors() -> None:
    """Each thread has waits of its own; an error in one ends its wait, not the telling of others."""
    waits, said = watch()
    release = threading.Event()

    def other() -> None:
        with waits.waiting_for("the other thread"):
            release.wait()

    thread = threading.Thread(target=other)
    thread.start()
    try:
        with waits.waiting_for("what fails"):
            raise ValueError
    except ValueError:
        pass
    until(lambda: bool(said))
    release.set()
    thread.join()
    assert "the other thread" in said[0] and not any("what fails" in line for line in said)
    assert waits.waits == {}


def test_one_that_does_not_wait_costs_nearly_nothing() -> None:
    waits, _ = watch()
    began = time.process_time()
    for _ in range(20_000):
        with waits.waiting_for("the data of a step"):
            pass
    assert (time.process_time() - began) / 20_000 < 20e-6  # about 1 us; no slow machine fails


def test_a_process_tells_on_its_own_and_after_a_fork() -> None:
    program = f"""
import os, sys, time
from jala_ray.training import watch
watch.configure(rank=3, world=8, patience_s={PATIENCE})
with watch.waiting_for("the parent's"):
    if os.fork() == 0:
        with watch.waiting_for("the data of step 7"):
            time.sleep({10 * PATIENCE})
        os._exit(0)
    os.wait()
assert "ray" not in sys.modules and "torch" not in sys.modules
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    for what in ("the parent's", "the data of step 7"):
        assert any(line.startswith("rank 3 of 8 has waited") and what in line for line in told), told
    assert not any("the data of step 7" in line and "the parent's" in line for line in told)


def test_a_step_that_hangs_names_rank_and_place(tmp_path: Path) -> None:
    """Rank 1 stands still in a forward pass, so that rank 0 waits for it where gradients are added; the row tells it as well."""
    mp.spawn(stalling, args=(str(tmp_path), 1.0, 4.0), nprocs=2)
    waits, stands = ((tmp_path / f"said{rank}").read_text() for rank in (0, 1))
    began = r"rank {} of 2 has waited \d+ s for step 2, computed by all ranks \(since [\d:]+\), now for "
    assert re.search(began.format(0) + "the backward pass of micro-batch 2 of 2, and the sum over ranks", waits), waits
    assert re.search(began.format(1) + "the forward pass of micro-batch 2 of 2", stands), stands
    assert "goes on after" in waits and "goes on after" in stands
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert 1.5 < row["straggler"] <= 2.0 and 1.0 <= row["rank_balance"] < 1.5, "it was slow, with as much to do"
    assert row["step_s/forward"] > 2.0 and row["step_s/backward"] > 1.5
