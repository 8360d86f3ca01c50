"""A run on a bucket is seen there while it trains, and a bucket that fails does not end it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.parsing import override
from jala_ray.training import setup
from jala_ray.training.log import RunLog
from jala_ray.training.pushing import Changed, Pusher
from jala_ray.types import ConfigError, StorageError
from tests.training.run import run_config


def until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return False


def test_only_what_changed_is_brought_and_what_failed_is_brought_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/b").write_text("2")
    (tmp_path / "half.new").write_text("3")
    there: dict[str, bytes] = {}
    changed = Changed(tmp_path)
    assert changed.bring(there.__setitem__) == 2 and there == {"a": b"1", "in/b": b"2"}
    assert changed.bring(there.__setitem__) == 0
    (tmp_path / "a").write_text("12")

    def fails(name: str, content: bytes) -> None:
        raise StorageError("write", name, "to succeed")

    with pytest.raises(StorageError):
        changed.bring(fails)
    assert changed.bring(there.__setitem__) == 1 and there["a"] == b"12"


def test_a_push_that_fails_is_one_warning_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []
    well = threading.Event()

    def push() -> None:
        calls.append(1)
        if not well.is_set():
            raise StorageError("write", "metrics.jsonl", "to succeed")

    pusher = Pusher(push, 0.01)
    assert until(lambda: len(calls) > 5)
    assert capsys.readouterr().out.count("WARNING the run's log could not be brought") == 1
    well.set()
    seen = len(calls)
    assert until(lambda: len(calls) > seen + 3)
    pusher.close()
    seen = len(calls)
    time.sleep(0.1)
    assert len(calls) == seen


def on_bucket(endpoint: str, push_s: float) -> RunConfig:
    """A run in a new bucket."""
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="runs")
    values = {"log.push_s": push_s, "storage.root": "s3://runs/x", "storage.endpoint_url": endpoint}
    return override(run_config(Path("unused")), values)


def test_rows_are_on_the_bucket_between_checkpoints(s3_endpoint: str) -> None:
    config = on_bucket(s3_endpoint, push_s=0.05)
    folder, options = setup.run_folder(config), setup.storage_options(config)
    address = storage.join(folder, "metrics.jsonl")

    def steps() -> list[int]:
        if not storage.exists(address, options):
            return []
        return [json.loads(line)["step"] for line in storage.read_bytes(address, options).decode().splitlines()]

    with RunLog(config, folder, 0, 9, options) as log:
        for step in (1, 2):
            log.write({"step": step, "loss": 1.0}, [])
            assert until(lambda step=step: steps() == list(range(1, step + 1))), "nobody called sync"
    assert steps() == [1, 2]


def test_what_an_orphan_wrote_late_is_put_right(s3_endpoint: str) -> None:
    """Its write was on the way when it was stopped: the holder's end brings every file once more, though nothing has changed since."""
    config = on_bucket(s3_endpoint, push_s=0.0)
    folder, options = setup.run_folder(config), setup.storage_options(config)
    address = storage.join(folder, "metrics.jsonl")
    with RunLog(config, folder, 0, 9, options) as log:
        log.write({"step": 1, "loss": 1.0}, [])
        log.sync()
        late = storage.read_bytes(address, options)
        log.write({"step": 2, "loss": 1.0}, [])
        log.sync()
        storage.write_bytes(address, late, options)
    assert [json.loads(line)["step"] for line in storage.read_bytes(address, options).splitlines()] == [1, 2]


def test_a_lost_lease_stops_what_is_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard is asked before every file; nothing is written for a run that another attempt has taken over."""
    written: list[str] = []
    lost = threading.Event()
    asked: list[int] = []

    def guard() -> None:
        asked.append(1)
        if lost.is_set():
            raise ConfigError("run folder", "held by another", "held by this")

    monkeypatch.setattr(storage, "exists", lambda *_: False)
    monkeypatch.setattr(
        "jala_ray.training.log.storage.write_bytes",
        lambda address, content, *_, **__: (
            written.append(str(address)) if "s3://" in str(address) else Path(address).write_bytes(content)
        ),
    )
    log = RunLog(override(run_config(tmp_path), {"log.push_s": 0.02}), "s3://runs/a", 0, 4, None, guard)
    assert until(lambda: "s3://runs/a/metrics.jsonl" in written)
    lost.set()
    time.sleep(0.1)
    count, times = len(written), len(asked)
    (log.folder / "metrics.jsonl").write_text('{"step": 1}\n')
    assert until(lambda: len(asked) > times + 3) and len(written) == count
    lost.clear()
    log.close()


def test_no_thread_where_it_is_switched_off_or_the_folder_is_local(tmp_path: Path) -> None:
    for push_s in (0.0, 60.0):
        with RunLog(override(run_config(tmp_path), {"log.push_s": push_s}), str(tmp_path / "a"), 0, 4, None) as log:
            assert log.pusher is None
    with pytest.raises(ConfigError, match=r"log\.push_s"):
        override(run_config(tmp_path), {"log.push_s": -1.0}).log.check()
