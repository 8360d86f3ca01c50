"""One run folder, two processes: the second is refused before it writes, and an orphan that wakes up commits nothing more."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.data.sampling.plan import Steps, rows_digest
from jala_ray.parsing import override, to_dict
from jala_ray.storage import StorageOptions
from jala_ray.training import history, lease, setup
from tests.faults.conftest import Bucket
from tests.faults.kills import LOGGED, killed_config, steps_of
from tests.faults.processes import Command

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
LEASE_S, EVERY = 2.0, 6


@pytest.fixture(params=["disk", "store"])
def held(
    request: pytest.FixtureRequest, raw_world: Path, tokenizer: str, tmp_path: Path
) -> tuple[RunConfig, StorageOptions]:
    """A run's configuration, and how its folder is reached."""
    root, options = str(tmp_path / "runs"), StorageOptions()
    if request.param == "store":
        bucket: Bucket = request.getfixturevalue("bucket")
        root, options = f"{bucket.uri}/runs", StorageOptions(endpoint_url=bucket.endpoint)
    config = killed_config(str(raw_world / "manifest.parquet"), tokenizer, root)
    values = {"storage.endpoint_url": options.endpoint_url, "storage.lease_s": LEASE_S, "train.keep": 10}
    return override(replace(config, name="held"), values), options


def started(config: RunConfig, logs: Path, name: str) -> Command:
    path = logs / f"{name}.json"
    path.write_text(json.dumps(to_dict(config)))
    return Command.start(["-m", "jala_ray.training.local", str(path)], {}, logs / f"{name}.log")


def stopped_at(command: Command, step: int) -> None:
    """Let it come to a step, and hold it there."""
    for logged in steps_of(command):
        if logged == step:
            command.signal(signal.SIGSTOP)
            return
    raise AssertionError(command.output)


def move_elsewhere(folder: str, options: StorageOptions) -> None:
    """Let the holder's last sign of life be that of a process of another machine, of which nobody here knows whether it lives."""
    time.sleep(LEASE_S / 4)  # one that was on its way to the store has arrived
    held = lease.newest_lease(folder, options)
    assert held is not None
    address = storage.join(folder, lease.FOLDER, held.owner + lease.BEAT)
    beat = json.loads(storage.read_bytes(address, options))
    beat["process"]["machine"] = "elsewhere"
    storage.write_bytes(address, json.dumps(beat).encode(), options)


def content(folder: str, options: StorageOptions) -> dict[str, str]:
    """SHA-256 of all that lies in the run folder, but for signs of life."""
    names = [name for name in storage.list_files(folder, options) if lease.BEAT not in name]
    return {name: hashlib.sha256(storage.read_bytes(f"{folder}/{name}", options)).hexdigest() for name in names}


def settled(folder: str, options: StorageOptions) -> dict[str, str]:
    """`content` when what its holder had sent before it was stopped, a checkpoint behind its steps or its log, has come to the store."""
    last: dict[str, str] = {}
    for _ in range(60):
        found = content(folder, options)
        if found == last:
            return found
        last = found
        time.sleep(LEASE_S / 4)
    raise AssertionError(f"{folder} still changes, though its holder is stopped")


def test_a_second_process_is_refused_before_it_writes(held: tuple[RunConfig, StorageOptions], tmp_path: Path) -> None:
    """By the name of the one that holds the folder, which lives, though it has been silent for longer than its lease."""
    config, options = held
    folder = setup.run_folder(config)
    with started(config, tmp_path, "first") as first:
        stopped_at(first, 5)
        time.sleep(1.5 * LEASE_S)
        before = settled(folder, options)
        with started(config, tmp_path, "second") as second:
            assert second.wait() == 1
        *_, last = second.output.strip().splitlines()
        assert last.startswith("error: name: ") and f"process {first.pid}" in last, second.output
        assert content(folder, options) == before
        first.signal(signal.SIGCONT)
        assert first.wait() == 0, first.output
    assert history.step_of(history.newest(folder, options) or "") == config.train.steps


def stopped_between_saves(command: Command, folder: str, options: StorageOptions) -> int:
    """Let it come to where it writes nothing, and hold it there; after which step its newest checkpoint was saved.

    Elsewhere one write may be on its way, which no question about the lease can call back (`RunLog.sync`).
    """
    for logged in steps_of(command):
        if logged <= EVERY:
            continue
        command.signal(signal.SIGSTOP)
        there = settled(folder, options)
        step = int(LOGGED.findall(command.output)[-1])  # it ran on after it had printed the one that was seen
        due = history.address(folder, step // EVERY * EVERY)
        saved = f"{due.removeprefix(folder).strip('/')}/{storage.COMMIT_FILE}" in there
        if saved and step % EVERY < EVERY - 1 and not any("UPLOADING" in name for name in there):
            return history.step_of(due)
        command.signal(signal.SIGCONT)
    raise AssertionError(command.output)


def test_an_orphan_that_wakes_up_commits_nothing(held: tuple[RunConfig, StorageOptions], tmp_path: Path) -> None:
    """Silent for longer than its lease, as on another machine, it finds another in its place; the history that stays has each row once."""
    config, options = held
    config = override(config, {"train.checkpoint_every": EVERY, "train.steps": 4 * EVERY, "log.push_s": 0.0})
    folder = setup.run_folder(config)
    with started(config, tmp_path, "orphan") as orphan:
        committed = stopped_between_saves(orphan, folder, options)
        move_elsewhere(folder, options)
        with started(config, tmp_path, "heir") as heir:
            stopped_at(heir, committed + 2)
            before = settled(folder, options)
            orphan.signal(signal.SIGCONT)
            assert orphan.wait() == 1
            assert content(folder, options) == before, "the orphan wrote while it was fenced off"
            *_, last = orphan.output.strip().splitlines()
            assert last.startswith("error: run folder ") and f"process {heir.pid}" in last, orphan.output
            heir.signal(signal.SIGCONT)
            assert heir.wait() == 0, heir.output
    check_each_row_once(config, options, resumed_at=committed)


def check_each_row_once(config: RunConfig, options: StorageOptions, resumed_at: int) -> None:
    """By the digests of the surviving history; steps after the checkpoint that the heir found are the heir's."""
    text = storage.read_bytes(f"{setup.run_folder(config)}/metrics.jsonl", options).decode()
    found = [json.loads(line) for line in text.splitlines()]
    steps = Steps(20, config.train.batch)
    assert [row["step"] for row in found] == list(range(1, (config.train.steps or 0) + 1))
    for row in found:
        span = steps.span(row["step"] - 1)
        assert row["rows_digest"] == f"{rows_digest(span.epoch, np.arange(span.first, span.last)) % 2**64:016x}"
        assert row["attempt"] == (1 if row["step"] <= resumed_at else 2)
    assert found[-1]["samples"] == sum(row["rows"] for row in found)


@pytest.mark.parametrize("where", ["weights", "marker"])
def test_a_damaged_checkpoint_is_passed_over(
    held: tuple[RunConfig, StorageOptions], tmp_path: Path, where: str
) -> None:
    """The next start says so and goes on from the one before."""
    config, options = held
    folder = setup.run_folder(config)
    with started(override(config, {"train.checkpoint_every": 2}), tmp_path, "first") as first:
        for step in steps_of(first):
            if step == 7:
                first.signal(signal.SIGKILL)
        first.wait()
    newest = history.newest(folder, options)  # after step 6 or, where that was still being written, 4
    assert newest is not None
    name = {"weights": "model.safetensors", "marker": "COMMIT.json"}[where]
    address = f"{newest}/{name}"
    data = bytearray(storage.read_bytes(address, options))
    data[len(data) // 2] ^= 0xFF
    storage.write_bytes(address, bytes(data[: -1 if where == "marker" else None]), options)
    with started(config, tmp_path, "second") as second:
        assert second.wait() == 0, second.output
    after = f"step {history.step_of(newest) - 1}/10"
    assert history.checkpoint_name(history.step_of(newest)) in second.output and after in second.output, second.output
