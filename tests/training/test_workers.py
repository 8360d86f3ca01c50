"""What a worker of Ray Train does before it trains; no cluster is needed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.train

from jala_ray.parsing import to_dict
from jala_ray.storage import sweeping
from jala_ray.training import launch
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
