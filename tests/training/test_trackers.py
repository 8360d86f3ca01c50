"""Trackers that fail, hang, or come back, and runs that are continued: the run goes on, and nothing is drawn twice."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from jala_ray.config import RunConfig
from jala_ray.storage import StorageOptions
from jala_ray.training import trackers
from jala_ray.training.log import RunLog
from jala_ray.training.trackers import Courier
from jala_ray.types import ConfigError
from tests.training.run import run_config

DOWN = "the tracking server does not answer"


def row(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1.0 / step, "lr": 0.1, "grad_norm": 1.0, "time_s": 1e9 + step}


class Place:
    """A tracker of the test's own: what arrives, and what fails (`open`, `close`, or a step)."""

    def __init__(self, *fails: str | int) -> None:
        self.fails, self.steps, self.closed = set[str | int](fails), list[int](), False

    def open(self) -> Place:
        self.fail("open")
        return self

    def fail(self, at: str | int) -> None:
        if at in self.fails:
            raise ConnectionError(DOWN)

    def log(self, row: dict[str, Any]) -> None:
        self.fail(row["step"])
        self.steps.append(row["step"])

    def close(self) -> None:
        self.fail("close")
        self.closed = True


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "PAUSE_S", 0.01)
    monkeypatch.setattr(trackers, "CLOSING_S", 0.3)


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    "fails, arrive",
    [
        ((), [1, 2, 3, 4, 5]),
        (("open",), []),
        ((2,), [1, 3, 4, 5]),
        ((3, 4, 5, "close"), [1, 2]),
        (("close",), [1, 2, 3, 4, 5]),
    ],
)
def test_an_outage_is_one_warning(
    fails: tuple[str | int, ...], arrive: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(*fails)
    courier = Courier("here", place.open)
    for step in range(1, 6):
        courier.log(row(step))
    courier.close()
    said = capsys.readouterr().out
    assert place.steps == arrive and place.closed == (not {"open", "close"} & set(fails))
    assert said.count("WARNING") == said.count(DOWN) == bool(fails)
    assert (f"here: {5 - len(arrive)} of 5 rows were not sent" in said) == (len(arrive) < 5)


def test_rows_wait_for_a_tracker_that_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    place = Place("open")
    courier = Courier("here", place.open)
    courier.log(row(1))
    until(lambda: courier.failures > 2)
    place.fails = set[str | int]({2})
    courier.log(row(2))
    courier.log(row(3))
    until(lambda: place.steps == [1] and courier.failures > 2)
    place.fails = set()
    until(lambda: place.steps == [1, 2, 3])
    courier.close()
    said = capsys.readouterr().out
    assert said.count("WARNING") == 1 and "not sent" not in said


def test_a_row_that_is_refused_for_good_lets_the_next_ones_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "PATIENCE_S", 0.05)
    place = Place(2)
    courier = Courier("here", place.open)
    for step in (1, 2, 3):
        courier.log(row(step))
    until(lambda: place.steps == [1, 3])
    courier.close()


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """Set: what hangs goes on."""
    released = threading.Event()
    yield released
    released.set()


@pytest.mark.parametrize("where", ["open", "log", "close"])
def test_a_tracker_that_hangs_holds_nothing_up(
    where: str, hanging: threading.Event, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "SILENCE_S", 0.05)
    place = Place()
    monkeypatch.setattr(place, where, lambda *_: hanging.wait() and place)
    began = time.monotonic()
    courier = Courier("here", place.open)
    courier.log(row(1))
    if where != "close":
        until(lambda: courier.calling is not None and time.monotonic() - courier.calling > 0.05)
        courier.log(row(2))
        assert "has not answered for 0.05 s" in capsys.readouterr().out
    courier.close()
    assert time.monotonic() - began < 5
    said = capsys.readouterr().out
    if where == "close":
        assert "did not finish within 0.3 s" in said and "not sent" not in said
    else:
        assert "WARNING" not in said and "2 of 2 rows were not sent" in said


def test_more_rows_than_can_wait_are_counted(
    hanging: threading.Event, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "WAITING", 3)
    place = Place()
    monkeypatch.setattr(place, "open", lambda: hanging.wait() and place)
    courier = Courier("here", place.open)
    for step in range(1, 6):
        courier.log(row(step))
    hanging.set()
    courier.close()
    said = capsys.readouterr().out
    assert place.steps == [1, 2, 3] and said.count("WARNING") == 1 and "here: 2 of 5 rows were not sent" in said


# --- runs that are continued -----------------------------------------------------------------------------------------

WANDB = """
import os
calls, down = [], False
class Run:
    def log(self, row, step):
        if down: raise ConnectionError("down")
        calls.append(("log", step))
    def finish(self): calls.append(("finish", None))
def init(**k):
    calls.append(("init", k["id"]))
    return Run()
"""
MLFLOW = """
import threading
calls, made, refusals = [], [], []
_here = threading.local()  # MLflow has one active run a thread
class _Run:
    def __init__(self, run_id): self.info = type("Info", (), {"run_id": run_id})
def set_experiment(name): pass
def start_run(run_id=None, run_name=None):
    if active := getattr(_here, "run", None):
        raise RuntimeError(f"Run with UUID {active} is already active. To start a new run, first end the current run")
    calls.append(("init", run_id))
    if run_id is None: made.append(run_name)
    _here.run = run_id or f"run-{len(made)}"
    return _Run(_here.run)
def log_params(p):
    if refusals: raise ConnectionError(refusals.pop())
    calls.append(("params", len(p) > 20))
def log_metrics(row, step, timestamp): calls.append(("log", (step, timestamp, sorted(row))))
def end_run():
    _here.run = None
    calls.append(("finish", None))
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules named wandb and mlflow, which need no server."""
    for name, text in (("wandb", WANDB), ("mlflow", MLFLOW)):
        (tmp_path / "stubs" / name).mkdir(parents=True)
        (tmp_path / "stubs" / name / "__init__.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "stubs")
    yield
    for name in ("wandb", "mlflow"):
        sys.modules.pop(name, None)


def attempt(config: RunConfig, folder: str, start: int, last: int, options: StorageOptions | None = None) -> RunLog:
    log = RunLog(config, folder, start, 10, options)
    for step in range(start + 1, last + 1):
        log.write(row(step), [])
    return log


def calls(name: str) -> list[tuple[str, Any]]:
    """Of a stub, if a tracker's thread has imported it already."""
    return getattr(sys.modules.get(name), "calls", [])


def steps(name: str) -> list[int]:
    return [what if name == "wandb" else what[0] for call, what in calls(name) if call == "log"]


def names(name: str) -> list[str | None]:
    return [what for call, what in calls(name) if call == "init"]


@pytest.mark.usefixtures("places")
def test_a_continued_run_goes_on_in_its_trackers_run(tmp_path: Path) -> None:
    config = run_config(tmp_path, log__wandb="p", log__mlflow="p")
    killed = attempt(config, str(tmp_path / "a"), 0, 4)
    until(lambda: steps("wandb") == steps("mlflow") == [1, 2, 3, 4])
    until(lambda: len(json.loads((tmp_path / "a/trackers.json").read_text())) == 2)
    until(lambda: all(k["sent"] == 4 for k in json.loads((tmp_path / "a/trackers.json").read_text()).values()))
    attempt(config, str(tmp_path / "a"), 2, 6).close()  # the newest checkpoint was that of step 2
    assert steps("wandb") == steps("mlflow") == [1, 2, 3, 4, 5, 6]
    first, second = names("wandb")
    assert first == second and names("mlflow") == [None, "run-1"]
    assert [call for call in calls("mlflow") if call[0] == "params"] == [("params", True)]
    assert ("log", (5, 1_000_000_005_000, ["grad_norm", "loss", "lr"])) in calls("mlflow")

    attempt(config, str(tmp_path / "b"), 0, 1).close()  # the same name in another folder
    assert names("wandb")[2] != first and names("mlflow")[2] is None
    killed.close()


@pytest.mark.usefixtures("places")
def test_parameters_that_were_refused_are_sent_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the run that has begun, and rows after them."""
    import mlflow  # pyright: ignore[reportMissingImports]  # the test's own

    mlflow.refusals.append("503")
    attempt(run_config(tmp_path, log__mlflow="p"), str(tmp_path / "a"), 0, 2).close()
    assert names("mlflow") == [None, "run-1"] and steps("mlflow") == [1, 2]
    assert [what for call, what in calls("mlflow") if call == "params"] == [True]
    assert "503" in capsys.readouterr().out


@pytest.mark.usefixtures("places")
def test_parameters_that_an_attempt_could_not_send_are_sent_by_the_next(tmp_path: Path) -> None:
    import mlflow  # pyright: ignore[reportMissingImports]

    config = run_config(tmp_path, log__mlflow="p")
    mlflow.refusals.extend(["503"] * (trackers.LAST_TRIES + 50))
    attempt(config, str(tmp_path / "a"), 0, 2).close()
    assert steps("mlflow") == []
    mlflow.refusals.clear()
    attempt(config, str(tmp_path / "a"), 2, 3).close()
    assert set(names("mlflow")) == {None, "run-1"} and steps("mlflow") == [1, 2, 3]
    assert [what for call, what in calls("mlflow") if call == "params"] == [True]


@pytest.mark.usefixtures("places")
def test_what_an_outage_kept_back_is_sent_by_the_next_attempt(tmp_path: Path) -> None:
    config = run_config(tmp_path, log__wandb="p")
    log = RunLog(config, str(tmp_path / "a"), 0, 10, None)
    until(lambda: bool(names("wandb")))
    wandb: Any = sys.modules["wandb"]
    wandb.down = True
    for step in (1, 2, 3):
        log.write(row(step), [])
    log.close()
    assert steps("wandb") == []
    wandb.down = False
    attempt(config, str(tmp_path / "a"), 2, 4).close()
    assert steps("wandb") == [1, 2, 3, 4]


@pytest.mark.usefixtures("places")
def test_a_run_on_s3_remembers_too(tmp_path: Path, s3_endpoint: str) -> None:
    options = StorageOptions(endpoint_url=s3_endpoint)
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="runs")
    config = run_config(tmp_path, log__wandb="p")
    for start, last in ((0, 3), (2, 4)):
        attempt(config, "s3://runs/a", start, last, options).close()
    first, second = names("wandb")
    assert first == second and steps("wandb") == [1, 2, 3, 4]


@pytest.mark.usefixtures("places")
def test_a_damaged_memory_begins_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/trackers.json").write_text("{")
    attempt(run_config(tmp_path, log__wandb="p"), str(tmp_path / "a"), 0, 1).close()
    assert steps("wandb") == [1] and "trackers.json" in capsys.readouterr().out


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"log\.mlflow.*tracking"):
        RunLog(run_config(tmp_path, log__mlflow="p"), str(tmp_path / "a"), 0, 1, None)


def test_tensorboard_has_every_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = run_config(tmp_path, log__tensorboard=True)
    attempt(config, str(tmp_path / "a"), 0, 4).close()
    attempt(config, str(tmp_path / "a"), 2, 5).close()
    events = EventAccumulator(str(tmp_path / "a/tensorboard"))
    events.Reload()
    drawn = events.Scalars("loss")
    assert [event.step for event in drawn] == [1, 2, 3, 4, 5]
    assert [event.wall_time for event in drawn] == [1e9 + step for step in range(1, 6)]


def test_tensorboard_on_a_full_disk_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/tensorboard").write_text("no folder")
    attempt(run_config(tmp_path, log__tensorboard=True), str(tmp_path / "a"), 0, 2).close()
    said = capsys.readouterr().out
    assert said.count("WARNING TensorBoard") == 1 and "TensorBoard: 2 of 2 rows were not sent" in said
    assert len((tmp_path / "a/metrics.jsonl").read_text().splitlines()) == 2
