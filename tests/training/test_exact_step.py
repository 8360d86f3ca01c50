"""How a step is cut changes nothing: micro-batches and ranks, in float64 over 24 steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from jala_ray.models.tensor_files import TensorFiles
from jala_ray.training import history
from jala_ray.training.trainer import train
from tests.training.step_ranks import BATCH, STEPS, exact_run
from tests.training.test_loop import rows

ROOT = Path(__file__).resolve().parents[2]
FIGURES = (
    *("loss", "loss_mcp", "loss_text", "loss_align", "loss_posterior", "grad_norm", "mcp_accuracy"),
    *("posterior_accuracy", "samples", "rows_digest"),
)


def figures(root: Path) -> list[dict[str, Any]]:
    return [{name: row[name] for name in FIGURES if row.get(name) is not None} for row in rows(str(root / "run"))]


def weights(root: Path, steps: int) -> dict[str, Tensor]:
    files = TensorFiles.of_folder(Path(history.address(str(root / "run"), steps)))
    return {name: files.tensor(name) for name in files}


def held_equal(one: Path, other: Path, steps: int = STEPS) -> None:
    assert len(figures(one)) == len(figures(other)) == steps
    for alone, cut in zip(figures(one), figures(other), strict=True):
        assert cut.pop("rows_digest") == alone["rows_digest"]
        assert cut == pytest.approx({n: v for n, v in alone.items() if n != "rows_digest"}, rel=1e-9, abs=1e-9)
    expected, found = weights(one, steps), weights(other, steps)
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


@pytest.mark.parametrize("again", [False, True])
def test_a_second_pass_is_cut_as_the_first(tmp_path: Path, again: bool) -> None:
    """Of `posterior`, also where blocks are computed again for the backward pass: 1 x 4 = 2 x 2 = 4 x 1 samples."""
    for name, micro in {"one": BATCH, "two": 2, "four": 1}.items():
        (tmp_path / name).mkdir()
        computed = {"model__backbone__gradient_checkpointing": again and name != "one"}
        train(exact_run(tmp_path / name, micro, 6, "tiny_posterior", computed))
    for name in ("two", "four"):
        held_equal(tmp_path / "one", tmp_path / name, 6)
    assert {"loss_posterior", "posterior_accuracy", "loss_align"} <= set().union(*figures(tmp_path / "one"))
