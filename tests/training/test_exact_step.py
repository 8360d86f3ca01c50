"""How a step is cut changes nothing: micro-batches and ranks, in float64 over 24 steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from jala_ray.training import history
from jala_ray.training.trainer import train
from tests.training.step_ranks import BATCH, STEPS, exact_run
from tests.training.test_loop import rows

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("loss", "loss_mcp", "loss_text", "loss_align", "grad_norm", "mcp_accuracy", "samples", "rows_digest")


def figures(root: Path) -> list[dict[str, Any]]:
    found = [{name: row[name] for name in FIGURES if row[name] is not None} for row in rows(str(root / "run"))]
    assert len(found) == STEPS
    return found


def weights(root: Path) -> dict[str, Tensor]:
    return load_file(Path(history.address(str(root / "run"), STEPS)) / "model.safetensors")


def held_equal(one: Path, other: Path) -> None:
    for alone, cut in zip(figures(one), figures(other), strict=True):
        assert cut.pop("rows_digest") == alone["rows_digest"]
        assert cut == pytest.approx({n: v for n, v in alone.items() if n != "rows_digest"}, rel=1e-9, abs=1e-9)
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-9


def test_micro_batches_and_ranks_give_the_same_run(tmp_path: Path) -> None:
    """1 x 4 = 2 x 2 = 4 x 1 samples in one process, and three ranks, of which one has two micro-batches and the others one."""
    for name in ("one", "two", "four", "ranks"):
        (tmp_path / name).mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.step_ranks"]
    started = [
        subprocess.Popen([*command, str(rank), "3", str(tmp_path / "ranks")], env=environment, stderr=subprocess.PIPE)
        for rank in range(3)
    ]
    for name, micro in {"one": BATCH, "two": 2, "four": 1}.items():
        train(exact_run(tmp_path / name, micro))
    errors = [process.communicate(timeout=600)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], errors
    for name in ("two", "four", "ranks"):
        held_equal(tmp_path / "one", tmp_path / name)
