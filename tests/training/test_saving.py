"""Checkpoints behind the training: nobody waits for a store, what fails is raised, ranks agree, a machine reads a checkpoint once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from safetensors.torch import load_file

from jala_ray import storage
from jala_ray.models.tensor_files import TensorFiles
from jala_ray.storage import StorageOptions
from jala_ray.storage.stores import LocalStore
from jala_ray.training import history, transfer
from jala_ray.training.lease import LeaseLost
from jala_ray.training.saving import Saver
from jala_ray.training.staging import Staged, StagingBuffers
from jala_ray.training.trainer import begins_with, train
from jala_ray.types import StorageError
from tests.training.run import SAVES, make_run, run_config
from tests.training.saving_ranks import HALF, STEPS, resized_run
from tests.training.test_exact_step import figures
from tests.training.test_loop import rows, until

ROOT = Path(__file__).resolve().parents[2]


class Model:
    """Something that learns."""

    def __init__(self) -> None:
        self.weight, self.stage = torch.zeros(10_000), StagingBuffers()

    def step(self) -> None:
        self.weight.add_(1.0)

    def staged(self) -> Staged:
        return self.stage.take({"model": {"weight": self.weight}}, {"state.json": b"{}"})


def saver(root: Path, **more: Any) -> Saver:
    return Saver(str(root / "run"), StorageOptions(), **{"keep": 2, **more})


def address(root: Path, step: int) -> str:
    return history.address(str(root / "run"), step)


def steps(root: Path) -> list[int]:
    return [history.step_of(uri) for uri in history.committed_steps(str(root / "run"))]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A store that writes nothing until the event is set."""
    answers, put = threading.Event(), LocalStore.put

    def waits(store: LocalStore, path: str, data: memoryview) -> None:
        assert answers.wait(60)
        put(store, path, data)

    monkeypatch.setattr(LocalStore, "put", waits)
    yield answers
    answers.set()


def test_a_slow_store_stops_no_step_and_gets_what_was_staged(tmp_path: Path, slow: threading.Event) -> None:
    told: list[tuple[dict, str]] = []
    model = Model()
    with saver(tmp_path, committed=lambda row, uri: told.append((row, uri))) as saves:
        saves.begin(model.staged, address(tmp_path, 1), {"step": 1})
        for _ in range(5):
            model.step()
            assert saves.poll(1.0)["save_wait_s"] < 30 and not told
        assert steps(tmp_path) == [], "nothing is there, and five steps went on"
        slow.set()
        saves.finish()
        row = saves.poll(1.0)
    assert told == [({"step": 1}, address(tmp_path, 1))]
    assert row["save_s"] > 0 and row["save_gb"] == pytest.approx(40_000 / 1e9, rel=0.1)
    storage.verify_dir(address(tmp_path, 1))
    assert not load_file(Path(address(tmp_path, 1)) / "model.safetensors")["weight"].any(), "steps are not in it"


def test_a_second_save_waits_for_the_first_and_says_how_long(
    tmp_path: Path, slow: threading.Event, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model()
    with saver(tmp_path) as saves:
        saves.begin(model.staged, address(tmp_path, 1), {"step": 1})
        threading.Timer(0.3, slow.set).start()
        model.step()
        saves.begin(model.staged, address(tmp_path, 2), {"step": 2})
        assert steps(tmp_path) == [1] and saves.poll(10.0)["save_wait_s"] >= 0.25
        saves.finish()
    assert steps(tmp_path) == [1, 2]
    assert "were waited until" in (said := capsys.readouterr().out) and "step-00000001 was saved" in said
    for step in (1, 2):
        assert load_file(Path(address(tmp_path, step)) / "model.safetensors")["weight"][0] == step - 1


def test_what_fails_behind_is_raised_at_the_next_poll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """After as many tries as a save has; nothing is committed."""

    def refused(store: LocalStore, path: str, data: memoryview) -> None:
        raise StorageError(f"write {path}", "no quota", "it to succeed")

    monkeypatch.setattr(LocalStore, "put", refused)
    monkeypatch.setattr(transfer, "PAUSE_S", 0.0)
    with saver(tmp_path) as saves:
        saves.begin(Model().staged, address(tmp_path, 1), {"step": 1})
        assert saves.save is not None and saves.save.ended.wait(30)
        with pytest.raises(StorageError, match="no quota"):
            saves.poll(1.0)
    assert steps(tmp_path) == [] and capsys.readouterr().out.count("to save it failed") == transfer.SAVES - 1


def test_who_lost_the_folder_commits_nothing(tmp_path: Path) -> None:
    class Lost:
        def check(self) -> None:
            raise LeaseLost("run folder", "another's", "ours")

    saves = saver(tmp_path, lease=Lost())
    saves.begin(Model().staged, address(tmp_path, 1), {"step": 1})
    with pytest.raises(LeaseLost):
        saves.finish()
    assert steps(tmp_path) == []


def test_a_just_in_time_checkpoint_is_there_on_return_and_older_ones_go(tmp_path: Path) -> None:
    synced: list[list[int]] = []
    with saver(tmp_path, sync=lambda: synced.append(steps(tmp_path))) as saves:
        for step in (1, 2, 3):
            saves.now(Model().staged, address(tmp_path, step), {"step": step})
            assert steps(tmp_path)[-1] == step
    assert steps(tmp_path) == [2, 3], "keep = 2"
    assert synced == [[], [1], [1, 2]], "before each commit"


def test_a_run_that_fails_leaves_the_save_under_way_its_time(tmp_path: Path, slow: threading.Event) -> None:
    with pytest.raises(ZeroDivisionError), saver(tmp_path) as saves:
        saves.begin(Model().staged, address(tmp_path, 1), {"step": 1})
        threading.Timer(0.2, slow.set).start()
        raise ZeroDivisionError
    assert steps(tmp_path) == [1]


def test_what_a_kill_leaves_is_swept(tmp_path: Path, slow: threading.Event) -> None:
    saves = saver(tmp_path)
    saves.begin(Model().staged, address(tmp_path, 1), {"step": 1})
    checkpoints = tmp_path / "run" / "checkpoints"
    until(lambda: checkpoints.exists() and any(checkpoints.iterdir()))
    assert [path.name.startswith(".step-00000001.") for path in checkpoints.iterdir()] == [True]
    storage.sweep(str(tmp_path / "run"))
    assert not list(checkpoints.iterdir()) and history.newest(str(tmp_path / "run")) is None


def test_saves_change_no_number(tmp_path: Path) -> None:
    """A run that saves after every step, and one that saves at its end alone."""
    often, once = (run_config(tmp_path / name, train__checkpoint_every=n) for name, n in (("a", 1), ("b", 4)))
    for config in (often, once):
        train(make_run(config))
    assert rows(str(tmp_path / "a" / "run")) == rows(str(tmp_path / "b" / "run"))
    told = [json.loads(line) for line in (tmp_path / "a" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(row.keys() >= SAVES for row in told), "a row tells of a save before it"


def test_all_begin_with_what_was_found_once(tmp_path: Path) -> None:
    """A commit in between changes nothing."""
    train(make_run(run_config(tmp_path)))
    run = make_run(run_config(tmp_path))
    run.resume_from = history.address(run.folder, 2)
    assert begins_with(run) == history.address(run.folder, 2) != history.newest(run.folder)
    run.resume_from = None
    assert begins_with(run) is None


# --- several ranks ---------------------------------------------------------------------------------------------------


def ranks(count: int, root: Path, what: str, **more: str) -> None:
    """Run `saving_ranks` in so many processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **more}
    command = [sys.executable, "-m", "tests.training.saving_ranks"]
    started = [
        subprocess.Popen([*command, str(r), str(count), str(root), what], env=environment, stderr=subprocess.PIPE)
        for r in range(count)
    ]
    errors = [process.communicate(timeout=600)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0] * count, errors


def said(root: Path) -> list[dict[str, Any]]:
    return [json.loads((root / f"said{rank}").read_text()) for rank in range(2)]


def test_what_fails_on_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    ranks(2, tmp_path, "failing")
    first, second = said(tmp_path)
    assert first["raised"] == second["raised"] and "No quota is left" in first["raised"]
    assert (first["tried"], second["tried"]) == (1, transfer.SAVES)
    assert steps(tmp_path) == []


def test_ranks_without_files_are_not_waited_for(tmp_path: Path) -> None:
    ranks(2, tmp_path, "tiny")
    assert steps(tmp_path) == [1]
    assert sorted(storage.read_commit(address(tmp_path, 1)).files) == ["state.json"]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_ranks_goes_on(tmp_path: Path, before: int, after: int) -> None:
    """In float64: losses, norms, weights and averages are those of one rank that was never stopped."""
    for name in ("straight", "cut"):
        (tmp_path / name).mkdir()
    train(resized_run(tmp_path / "straight"))
    ranks(before, tmp_path / "cut", "half")
    found = history.committed_steps(str(tmp_path / "cut" / "run"))
    assert history.step_of(found[0]) == HALF
    assert ("model.safetensors" in storage.read_commit(found[0]).files) == (before == 1)
    ranks(after, tmp_path / "cut", "rest")
    one, other = figures(tmp_path / "straight"), figures(tmp_path / "cut")
    assert len(one) == len(other) == STEPS
    for a, b in zip(one, other, strict=True):
        assert a.pop("rows_digest") == b.pop("rows_digest")
        assert b == pytest.approx(a, rel=1e-9, abs=1e-9)
    folders = [Path(history.address(str(tmp_path / name / "run"), STEPS)) for name in ("straight", "cut")]
    for kind in ("model", "optimizer", "average"):
        mine, theirs = (TensorFiles.of_folder(folder, stem=kind) for folder in folders)
        assert set(mine) == set(theirs) and len(set(mine)) > 0
        assert (
            max(float((mine.tensor(n) - theirs.tensor(n)).abs().max()) for n in mine if mine.tensor(n).numel()) < 1e-9
        )


def test_a_machine_reads_a_checkpoint_once(tmp_path: Path, s3_endpoint: str) -> None:
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="runs")
    options, run = StorageOptions(endpoint_url=s3_endpoint), "s3://runs/run"
    with Saver(run, options, keep=2) as saves:
        for step in (1, 2):
            saves.now(Model().staged, history.address(run, step), {"step": step})
    size = sum(entry.size for entry in storage.read_commit(history.address(run, 2), options).files.values())
    (tmp_path / "run.json").write_text(json.dumps({"endpoint": s3_endpoint, "folder": run}))
    (tmp_path / "tmp").mkdir()
    ranks(2, tmp_path, "resume", TMPDIR=str(tmp_path / "tmp"))
    first, second = said(tmp_path)
    assert sorted([first["read"], second["read"]]) == [0, size], "of two ranks one reads it"
    assert first["names"] == second["names"] and "model.safetensors" in first["names"]
    assert (first["asked"], second["asked"]) == (1, 0)
    assert not list((tmp_path / "tmp").iterdir()), "the last one removes the copy"


def test_time_is_told(tmp_path: Path) -> None:
    model = Model()
    with saver(tmp_path) as saves:
        assert saves.poll(2.0) == {"save_wait_s": 0.0, "save_wait": 0.0}
        saves.begin(lambda: (time.sleep(0.1), model.staged())[1], address(tmp_path, 1), {})
        row = saves.poll(2.0)
        assert row["save_wait_s"] >= 0.1 and row["save_wait"] == pytest.approx(row["save_wait_s"] / 2.0)
        saves.finish()
