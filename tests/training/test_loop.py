"""The loop: resume, ranks, errors, what a run folder holds (method.md 4, 6)."""

import errno
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.data.sampling.plan import rows_digest
from jala_ray.parsing import override
from jala_ray.training import checkpoint, history, setup, transfer
from jala_ray.training.lease import LeaseLost, acquire
from jala_ray.training.log import RunLog
from jala_ray.training.optim import lr_factor
from jala_ray.training.setup import storage_options as options_of
from jala_ray.training.trainer import train
from jala_ray.types import CheckpointError, DamagedCheckpoint, StorageError, UserError
from tests.support import A, Kind, L, U
from tests.training.run import COSTS, make_run, one_of_two, run_config

TIMES = {"time_s", "step_s", "data_wait", "samples_per_s", "chunks_per_s", "tokens_per_s", "attempt", "world", *COSTS}


def rows(folder: str) -> list[dict]:
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


HEIRS = b'{"step": 1}\n'
"""What another attempt has logged."""


def newest(config: RunConfig) -> str:
    found = history.newest(setup.run_folder(config))
    assert found is not None
    return found


class Killed(Exception):
    pass


def until(there: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_resume_is_exact(tmp_path: Path) -> None:
    """2 steps, a crash after the third, and a resume to 4 give what 4 straight steps give, bit for bit."""
    straight = make_run(run_config(tmp_path / "a"))
    train(straight)

    broken = make_run(run_config(tmp_path / "b"))
    whole = broken.shares

    def failing(first: int):
        for i, share in enumerate(whole(first)):
            if i == 3:
                raise Killed
            yield share

    broken.shares = failing
    with pytest.raises(Killed):
        train(broken)
    again = make_run(run_config(tmp_path / "b"))
    assert again.resume_from is not None and history.step_of(again.resume_from) == 2
    train(again)

    assert rows(again.folder) == rows(straight.folder)
    assert [r["step"] for r in rows(again.folder)] == [1, 2, 3, 4]
    cut = (Path(again.folder) / "metrics.cut.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in cut] == [3]
    for name, value in straight.learner.state_dict().items():
        assert torch.equal(value, again.learner.state_dict()[name]), name


def test_run_folder_and_checkpoint(tmp_path: Path) -> None:
    run = make_run(run_config(tmp_path))
    train(run)
    last = rows(run.folder)[-1]
    for key in ("loss", "loss_mcp", "loss_align", "loss_text", "lr", "grad_norm", "monitor/rho", "samples", "epoch"):
        assert any(key in row for row in rows(run.folder)), key
    for domain in ("lab", "wild"):
        for key in ("loss_mcp", "mcp_accuracy", "loss_align", "monitor/rho", "monitor/effective_rank_z"):
            assert f"val/{domain}/{key}" in last
    # 20 rows, batches of 6: the fourth step holds the two that are left.
    assert last["samples"] == 20 and last["epoch"] == 1
    loaded = checkpoint.load(newest(run.config))
    assert loaded.config == run.config and loaded.position.step == 4 and loaded.position.samples == 20
    for name, value in run.learner.state_dict().items():
        assert torch.equal(value, loaded.learner.state_dict()[name]), name
    assert loaded.assets.spec == run.assets.spec


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """Rank 0 has only untracked clips, rank 1 only labelled ones; weights (EMA included) equal one process."""
    kinds = [Kind("pure_video", (U, U), 2), Kind("pure_video", (A, U), 1)]
    kinds += [Kind("generation", (L, L), 2), Kind("description", (A, L), 1)]
    mp.spawn(one_of_two, args=(str(tmp_path), kinds), nprocs=2)
    config = run_config(tmp_path, name="one", train__batch=4)
    single = make_run(config, kinds=kinds, rows=4, shuffle=False)
    train(single)
    ranks = [torch.load(tmp_path / f"rank{r}.pt") for r in (0, 1)]
    moved = 0
    for name, value in single.learner.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], value, atol=2e-5, rtol=1e-3, msg=name)
        moved += name.startswith("objective.lap.backbone")
    assert moved
    one, two = rows(single.folder), rows(str(tmp_path / "two"))
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "loss_mcp", "loss_align", "loss_text", "val/wild/loss_align", "samples"):
            if key in a:
                assert b[key] == pytest.approx(a[key], abs=1e-4), key


def test_quarantined_rows_are_reported(tmp_path: Path) -> None:
    run = make_run(run_config(tmp_path, data__max_error_share=0.5), bad=frozenset({3, 4, 5}))
    train(run)
    errors = [json.loads(line) for line in (Path(run.folder) / "errors.jsonl").read_text().splitlines()]
    assert sorted(e["clip_id"] for e in errors) == ["clip3", "clip4", "clip5"]
    assert all("a readable video" in e["reason"] for e in errors)
    assert rows(run.folder)[-1]["samples"] == 17


def test_too_many_errors_stop_the_run(tmp_path: Path) -> None:
    run = make_run(run_config(tmp_path, data__min_rows_for_share=6), bad=frozenset(range(0, 20, 2)))
    with pytest.raises(UserError, match="max_error_share"):
        train(run)


def test_a_step_of_nothing_readable_moves_no_weight(tmp_path: Path) -> None:
    """All rows of a step unreadable: padding samples keep the ranks together, and neither optimizer nor EMA steps."""
    config = run_config(tmp_path, data__max_error_share=1.0)
    run = make_run(config, bad=frozenset(range(20)))
    before = {name: value.clone() for name, value in run.learner.state_dict().items()}
    train(run)
    for name, value in run.learner.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [(row["samples"], row["empty_steps"]) for row in rows(run.folder)] == [(0, 1)] * 4


def test_trained_and_quarantined_rows_have_digests_of_their_own(tmp_path: Path) -> None:
    """Together they are the plan's rows, so that a row that went missing shows, and one set aside is not taken for trained."""
    bad = frozenset({3, 4, 5})
    run = make_run(run_config(tmp_path, data__max_error_share=0.5), bad=bad, shuffle=False)
    train(run)
    for step, row in enumerate(rows(run.folder)):
        met = set(range(6 * step, min(6 * step + 6, 20)))
        for key, expected in (("rows_digest", met - bad), ("quarantined_digest", met & bad)):
            digest = rows_digest(0, np.array(sorted(expected), np.int64)) % 2**64
            assert row[key] == f"{digest:016x}", (step, key)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """Found when it is read: it is set aside, and the next start goes on from the one before, to the same end."""
    straight = make_run(run_config(tmp_path / "a"))
    train(straight)
    config = run_config(tmp_path / "b")
    train(make_run(config))
    weights = Path(newest(config)) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # of the same size
    weights.write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match="step-00000004"):
        train(make_run(config))
    again = make_run(config)
    assert again.resume_from is not None and history.step_of(again.resume_from) == 2
    train(again)
    assert rows(again.folder) == rows(straight.folder)


@pytest.fixture
def stored(tmp_path: Path, s3_endpoint: str) -> RunConfig:
    """The configuration of a run with two checkpoints, on S3."""
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="runs")
    config = override(run_config(tmp_path), {"storage.root": "s3://runs", "storage.endpoint_url": s3_endpoint})
    train(make_run(config))
    return config


def steps_kept(config: RunConfig) -> list[int]:
    return [history.step_of(uri) for uri in history.committed_steps(setup.run_folder(config), options_of(config))]


def test_a_full_temporary_folder_costs_no_checkpoint(
    stored: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does whatever else is no proof of damage."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    real = storage.download_dir

    def full(uri: str, local: Path, *args: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", no_space)
            real(uri, local, *args)

    def no_space(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "download_dir", full)
        with pytest.raises(StorageError, match="No space left"):
            train(make_run(stored))
    assert steps_kept(stored) == [2, 4]
    assert train(make_run(stored)) == {}


def test_room_for_a_checkpoint_is_asked_for_before(stored: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = storage.read_commit(history.address(setup.run_folder(stored), 4), options_of(stored))
    needed = sum(entry.size for entry in commit.files.values())
    free = shutil.disk_usage(tempfile.gettempdir())._replace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(StorageError, match=f"{needed - 1} bytes free.*{needed} bytes for resume.*TMPDIR"):
        train(make_run(stored))
    assert steps_kept(stored) == [2, 4]


def test_a_checkpoint_that_may_not_be_looked_at_is_kept(stored: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, options = setup.run_folder(stored), options_of(stored)

    def closed(uri: str, *args: Any, **kwargs: Any) -> None:
        raise StorageError(f"look at {uri}", "AccessDenied", "it to succeed")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "verify_dir", closed)
        with pytest.raises(StorageError, match="AccessDenied"):
            history.settle(folder, options)
    assert steps_kept(stored) == [2, 4]


def test_a_checkpoint_that_is_gone_by_now_is_passed_over(stored: RunConfig) -> None:
    """Another rank has set it aside, or it was pruned: the next turn finds an older one."""
    run = make_run(stored)
    storage.delete(f"{run.resume_from}/COMMIT.json", options_of(stored))
    with pytest.raises(DamagedCheckpoint):
        train(run)
    assert steps_kept(stored) == [2]


def test_a_save_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    real, failed = storage.Gathering.write, []

    def stumbling(folder, files):
        if not failed:
            failed.append(folder.uri)
            raise StorageError("upload", folder.uri, "to arrive")
        return real(folder, files)

    monkeypatch.setattr(storage.Gathering, "write", stumbling)
    monkeypatch.setattr(transfer, "PAUSE_S", 0.0)
    run = make_run(run_config(tmp_path))
    train(run)
    assert [history.step_of(uri) for uri in history.committed_steps(run.folder)] == [2, 4]
    assert "attempt 1 of 3 to save it failed" in capsys.readouterr().out


def test_a_log_that_cannot_be_closed_does_not_hide_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: RunLog) -> None:
        raise StorageError("write", "metrics.jsonl", "to succeed")

    run = make_run(run_config(tmp_path, data__min_rows_for_share=6), bad=frozenset(range(0, 20, 2)))
    monkeypatch.setattr(RunLog, "close", fails)
    with pytest.raises(UserError, match="max_error_share") as raised:
        train(run)
    assert "could not be closed either" in raised.value.__notes__[0]


@pytest.mark.parametrize("place", ["disk", "store"])
def test_who_lost_the_folder_writes_nothing(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """An attempt that another one took over from logs and saves nothing, and does not touch what is there."""
    config = run_config(tmp_path, train__steps=8)
    if place == "store":
        endpoint = request.getfixturevalue("s3_endpoint")
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="runs")
        values = {"storage.root": "s3://runs", "storage.endpoint_url": endpoint, "log.tensorboard": True}
        config = override(config, values)
    folder, options = setup.run_folder(config), setup.storage_options(config)
    with setup.claim(config, folder, options) as first:
        run = make_run(config)
        run.lease, shares = first, run.shares

        def taken_over(begin: int):
            for i, share in enumerate(shares(begin)):
                if i == 3:
                    until(lambda: history.newest(folder, options) is not None and not unfinished())
                    acquire(folder, options)
                    storage.write_bytes(f"{folder}/metrics.jsonl", HEIRS, options)
                    left.update(storage.list_files(folder, options))
                yield share

        def unfinished() -> list[str]:
            return [name for name in storage.list_files(folder, options) if "UPLOADING" in name or ".part" in name]

        left: dict[str, int] = {}
        run.shares = taken_over
        with pytest.raises(LeaseLost, match="attempt 2"):
            train(run)
    after = storage.list_files(folder, options)
    assert {k: v for k, v in after.items() if "leases/" not in k} == {
        k: v for k, v in left.items() if "leases/" not in k
    }
    assert storage.read_bytes(f"{folder}/metrics.jsonl", options) == HEIRS
    assert [history.step_of(uri) for uri in history.committed_steps(folder, options)] == [2]


def test_wrong_checkpoints_are_refused(tmp_path: Path) -> None:
    run = make_run(run_config(tmp_path))
    train(run)
    folder = Path(newest(run.config))
    with pytest.raises(CheckpointError, match="COMMIT"):
        checkpoint.load(str(tmp_path))
    other = make_run(run_config(tmp_path, name="other", objective__perceiver__width=32))
    with pytest.raises(CheckpointError, match="stored"):
        checkpoint.load_weights(other.learner, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        checkpoint.load(str(folder))
    (folder / "COMMIT.json").unlink()
    assert history.step_of(newest(run.config)) == 2, "an unfinished checkpoint is passed over"


def test_old_checkpoints_are_deleted(tmp_path: Path) -> None:
    run = make_run(run_config(tmp_path, train__checkpoint_every=1, train__keep=2))
    train(run)
    names = storage.list_dir(storage.join(run.folder, "checkpoints"))
    assert sorted(n.strip("/") for n in names) == ["step-00000003", "step-00000004"]


def test_schedule() -> None:
    factors = [lr_factor(s, 100, 0.05) for s in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(factors) == 1.0 and factors[-1] < 0.001
    assert all(a >= b for a, b in itertools.pairwise(factors[5:]))


def test_divergence_stops_before_the_checkpoint(tmp_path: Path) -> None:
    """A NaN never replaces a good checkpoint."""
    run = make_run(run_config(tmp_path, optim__lr=1e30, optim__warmup=0.0))
    with pytest.raises(UserError, match="finite number"):
        train(run)
    assert all(history.step_of(uri) < 4 for uri in history.committed_steps(run.folder))


@pytest.mark.parametrize("delay", [0.0, 0.15])
def test_the_data_meter_counts_what_handing_over_takes(tmp_path: Path, delay: float) -> None:
    """Bounds of the test's own clock: at least the time shares take to come, at most what the model's time leaves."""
    once = {f"train__{name}_every": 4 for name in ("log", "validate", "monitor", "checkpoint")}
    run = make_run(run_config(tmp_path, **once))
    ready = list(run.shares(0))
    handing, modelling = 0.0, 0.0

    def late(_: int) -> Iterator[Any]:
        nonlocal handing, modelling
        for share in ready:
            began = time.perf_counter()
            time.sleep(delay)
            handed = time.perf_counter()
            handing += handed - began
            yield share
            modelling += time.perf_counter() - handed

    run.shares = late
    train(run)
    waited, took = meter(run.folder)
    assert handing >= 4 * delay and modelling > 0
    assert handing <= waited <= took - modelling


def meter(folder: str) -> tuple[float, float]:
    """Seconds that the last row says went by waiting for data, and in all."""
    last = json.loads(storage.read_bytes(f"{folder}/metrics.jsonl").splitlines()[-1])
    return last["data_wait"] * last["step_s"] * 4, last["step_s"] * 4
