"""The run folder belongs to one run, and addresses mean the same in every process."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.parsing import override
from jala_ray.storage import StorageOptions
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.training import history, setup
from jala_ray.training.build import build_assets
from jala_ray.training.lease import Process, newest_lease
from jala_ray.training.trainer import train
from jala_ray.types import CheckpointError, ConfigError, StorageError, StoreUnavailable
from tests.support import MOTION
from tests.training.run import make_run, run_config
from tests.training.test_lease import held_by
from tests.training.tokenizer_ranks import make_run as make_tokenizer_run


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    MotionTokenizer(MOTION).save(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def test_relative_addresses_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = setup.absolute(override(run_config(tmp_path), {"storage.root": "runs", "data.manifest": "m.parquet"}))
    assert config.storage.root == str(tmp_path / "runs") and config.data.manifest == str(tmp_path / "m.parquet")
    kept = override(config, {"storage.root": "s3://bucket/runs"})
    assert setup.run_folder(setup.absolute(kept)) == "s3://bucket/runs/run"


def test_a_relative_root_in_a_submitted_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / setup.JOB_COPY / "package"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(ConfigError, match=r"--storage\.root"):
        setup.absolute(override(run_config(tmp_path), {"storage.root": "runs"}))


def test_a_folder_continues_one_run(tmp_path: Path, tokenizer: str) -> None:
    config = replace(run_config(tmp_path), motion_tokenizer=tokenizer)
    assert begin(config) == 1
    storage.write_bytes(f"{setup.run_folder(config)}/metrics.jsonl", b"{}\n")
    assert begin(override(config, {"cluster.workers": 3, "train.keep": 9})) == 2  # what may change
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        begin(override(config, {"optim.lr": 0.5}))


def test_a_failed_start_leaves_the_name_free(tmp_path: Path, tokenizer: str) -> None:
    """Settings bind a run from its first step on; what a start before it left is made anew."""
    config = replace(run_config(tmp_path), motion_tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match="missing_tokenizer"):
        begin(override(config, {"motion_tokenizer": str(tmp_path / "missing_tokenizer")}))
    begin(override(config, {"optim.lr": 0.5, "model.text.vocab_size": 290}))
    assets = Path(setup.run_folder(config), "assets", "sequence.json")
    first = assets.read_text()
    begin(config)
    assert assets.read_text() != first, "the assets are those of these settings"
    assert json.loads(Path(setup.run_folder(config), "config.json").read_text())["optim"]["lr"] == config.optim.lr


def begin(config: RunConfig) -> int:
    """What a start does up to the plans; the number of its attempt."""
    folder, options = setup.run_folder(config), setup.storage_options(config)
    with setup.claim(config, folder, options) as lease:
        setup.prepare_assets(config, folder, options)
        return lease.held.attempt


def test_an_unwritable_bucket_is_named(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    values = {"storage.root": "s3://nowhere/runs", "storage.endpoint_url": "http://127.0.0.1:9"}
    config = override(replace(run_config(tmp_path), motion_tokenizer=tokenizer), values | {"storage.patience_s": 0.5})
    with pytest.raises(StoreUnavailable, match="nowhere"):
        begin(config)


def test_a_start_keeps_as_many_checkpoints_as_it_shall(tmp_path: Path) -> None:
    """A kill between a commit and the deletion of the oldest leaves one too many; another run's settings delete nothing."""
    config = run_config(tmp_path, train__keep=2)
    folder, options = setup.run_folder(config), setup.storage_options(config)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "state.json").write_text("{}")
    with setup.claim(config, folder, options):
        for step in (2, 4, 6):
            storage.upload_dir(tmp_path / "files", history.address(folder, step))
    with pytest.raises(ConfigError, match="seed"):
        setup.claim(override(config, {"seed": 5, "train.keep": 1}), folder, options)
    assert len(history.committed_steps(folder)) == 3
    with setup.claim(config, folder, options):
        assert [history.step_of(uri) for uri in history.committed_steps(folder)] == [4, 6]


def test_a_dead_machine_is_waited_for_once(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"storage.lease_s": 0.2}
    config = override(replace(run_config(tmp_path), motion_tokenizer=tokenizer), values)
    begin(config)
    held_by(setup.run_folder(config), replace(Process.this(), machine="elsewhere"))
    assert begin(config) == 2
    assert capsys.readouterr().out.count("waiting up to") == 1


def test_the_store_is_tried_by_who_holds_the_folder(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that is refused writes nothing, and what the holder sweeps is nobody's trial. One that fails gives the folder back."""
    config, held = replace(run_config(tmp_path), motion_tokenizer=tokenizer), []

    def probe(folder: str, options: StorageOptions) -> None:
        held.append(newest_lease(folder, options))
        raise StorageError("write", "no right to", "it to succeed")

    monkeypatch.setattr(storage, "probe", probe)
    with pytest.raises(StorageError, match="no right to"):
        begin(config)
    assert [lease and lease.attempt for lease in held] == [1]
    (beat,) = Path(setup.run_folder(config), "leases").glob("*.beat")
    assert json.loads(beat.read_text())["released"]


@pytest.fixture
def undeletable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of checkpoints whose folder cannot be removed, as where another process has a file of it open on NFS."""
    names, remove = list[str](), shutil.rmtree

    def refuse(path: str, *args: Any, **kwargs: Any) -> None:
        if Path(path).name in names:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", path)
        remove(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    return names


def test_a_checkpoint_that_cannot_be_deleted_ends_no_run(
    tmp_path: Path, undeletable: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The next start deletes it."""
    config = run_config(tmp_path, train__checkpoint_every=1, train__keep=2)
    folder, options = setup.run_folder(config), setup.storage_options(config)
    undeletable.append(history.checkpoint_name(1))
    train(make_run(config))
    steps = [history.step_of(uri) for uri in history.folders(folder)]
    assert steps == [4, 3, 1] and [history.step_of(uri) for uri in history.committed_steps(folder)] == [3, 4]
    warning = f"WARNING checkpoint {history.address(folder, 1)} could not be deleted"
    assert capsys.readouterr().out.count(warning) == 1
    with setup.claim(config, folder, options):
        assert warning in capsys.readouterr().out
    undeletable.clear()
    with setup.claim(config, folder, options):
        assert [history.step_of(uri) for uri in history.folders(folder)] == [4, 3]


@pytest.mark.parametrize("text", ["", '{"name": "run", "se'])
def test_settings_that_are_cut_off_are_named(tmp_path: Path, tokenizer: str, text: str) -> None:
    config = replace(run_config(tmp_path), motion_tokenizer=tokenizer)
    begin(config)
    storage.write_bytes(f"{setup.run_folder(config)}/metrics.jsonl", b"{}\n")
    Path(setup.run_folder(config), "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run/config\.json: .*checkpoint"):
        begin(config)


def test_a_run_leaves_the_environment_as_it_was(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run of the process, without an endpoint, must not go to this one's."""
    monkeypatch.setenv("AWS_REGION", "eu-1")
    values = {"storage.endpoint_url": "http://127.0.0.1:9", "storage.region": "eu-2"}
    pretraining = replace(run_config(tmp_path), motion_tokenizer=tokenizer)
    learning = replace(make_tokenizer_run(tmp_path).config, manifests=("m.parquet",))
    names, seen = ("AWS_ENDPOINT_URL_S3", "AWS_REGION"), []

    def claim(*_: object) -> None:
        seen.append([os.environ.get(name) for name in names])
        raise StorageError("claim", "this", "no more")

    monkeypatch.setattr(setup, "claim", claim)
    monkeypatch.setattr(RunConfig, "check", lambda config: None)
    for prepared in (
        setup.prepared(override(pretraining, values)),
        setup.prepared_tokenizer(override(learning, values)),
    ):
        with pytest.raises(StorageError, match="claim"), prepared:
            raise AssertionError("not reached")
        assert [os.environ.get(name) for name in names] == [None, "eu-1"]
    assert seen == [["http://127.0.0.1:9", "eu-2"]] * 2


def test_a_motion_tokenizer_is_reached_as_the_settings_say(tmp_path: Path, tokenizer: str, s3_endpoint: str) -> None:
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="lab")
    values = {"motion_tokenizer": "s3://lab/run", "storage.endpoint_url": s3_endpoint}
    config = override(run_config(tmp_path), values)
    storage.upload_dir(tokenizer, "s3://lab/run/tokenizer", setup.storage_options(config))
    assert build_assets(config, tmp_path / "scratch").motion.codes == MOTION.codes
