"""What a worker of Ray Train does before it trains; no cluster is needed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import ray.train

from jala_ray import storage
from jala_ray.parsing import to_dict
from jala_ray.storage import sweeping
from jala_ray.training import history, launch
from tests.training import tokenizer_ranks
from tests.training.run import run_config


class BegunError(Exception):
    """Ray is asked for the first time."""


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a killed process left in this machine's temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    folder = tmp_path / "tmp" / f"jala_ray-resume-{sweeping.socket.gethostname()}-999999999-1-01234567"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    return folder


@pytest.mark.parametrize("worker", [launch.train_worker, launch.tokenizer_worker])
def test_a_worker_sweeps_its_own_machine(
    worker: Callable[[dict[str, Any]], None],
    left: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The driver sweeps its machine alone, and Ray starts a group of workers again without it."""

    def asked() -> None:
        raise BegunError

    monkeypatch.setattr(ray.train, "get_context", asked)
    config = run_config(tmp_path) if worker is launch.train_worker else tokenizer_ranks.make_run(tmp_path).config
    with pytest.raises(BegunError):
        worker({"config": to_dict(config)})
    assert not left.exists()
    assert f"removed what earlier attempts left behind: 1 leftovers, 0.0 MB: {left.name}" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["s3://runs/run", "/shared/runs/run"])
def test_ray_is_told_where_a_checkpoint_lies(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the path that it has in the run's file system, which is made once."""
    told: list[dict[str, Any]] = []
    filesystem = pyarrow.fs.LocalFileSystem()
    monkeypatch.setattr(storage, "filesystem", None)
    monkeypatch.setattr(ray.train, "report", lambda metrics, **more: told.append(metrics | more))
    address = history.address(folder, 4)
    for rank in (0, 1):
        launch.reporter(filesystem, rank)({"step": 4, "name": "run"}, address)
    first, second = told
    assert first["step"] == 4 and "name" not in first and first["checkpoint_dir_name"] == "step-00000004"
    assert first["checkpoint"].path == address.removeprefix("s3://") and second["checkpoint"] is None
