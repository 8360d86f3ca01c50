"""The run folder belongs to one run, and addresses mean the same in every process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jala_ray.parsing import override
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.training import setup
from jala_ray.types import ConfigError, StorageError
from tests.support import MOTION
from tests.training.run import run_config


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
    setup.prepare(config)
    setup.prepare(override(config, {"cluster.workers": 3, "train.keep": 9}))  # what may change
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        setup.prepare(override(config, {"optim.lr": 0.5}))


def test_an_unwritable_bucket_is_named(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    values = {"storage.root": "s3://nowhere/runs", "storage.endpoint_url": "http://127.0.0.1:9"}
    config = override(replace(run_config(tmp_path), motion_tokenizer=tokenizer), values)
    with pytest.raises(StorageError, match="nowhere"):
        setup.prepare(config)
