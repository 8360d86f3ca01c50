"""How a step is cut and when a run is stopped change nothing: dropout, noise, flow time and averages are the rows' and the steps' own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from jala_ray.models.tensor_files import TensorFiles
from jala_ray.training import checkpoint, history
from jala_ray.training.trainer import train
from jala_ray.types import CheckpointError
from tests.posttraining.ranks import STEPS, exact_run
from tests.posttraining.world import flow_config, flow_run
from tests.training.test_loop import rows

ROOT = Path(__file__).resolve().parents[2]


def figures(root: Path) -> list[dict[str, Any]]:
    names = ("loss", "loss_flow", "grad_norm", "val/robot/loss_flow", "samples")
    return [{name: row[name] for name in names if row.get(name) is not None} for row in rows(str(root / "run"))]


def weights(root: Path, steps: int, kind: str = "model") -> dict[str, torch.Tensor]:
    stored = TensorFiles.of_folder(Path(history.address(str(root / "run"), steps)), stem=kind)
    return {name: stored.tensor(name) for name in stored.shapes()}


def held_equal(one: Path, other: Path) -> None:
    assert len(figures(one)) == len(figures(other)) == STEPS
    for alone, cut in zip(figures(one), figures(other), strict=True):
        assert cut == pytest.approx(alone, rel=1e-9, abs=1e-9)
    for kind in ("model", "average"):
        expected, found = weights(one, STEPS, kind), weights(other, STEPS, kind)
        assert expected.keys() == found.keys()
        assert (
            max(float((found[name] - expected[name]).abs().max()) for name in expected if expected[name].numel()) < 1e-9
        )


def test_micro_batches_and_ranks_give_the_same_run(tmp_path: Path) -> None:
    """1 x 4 = 2 x 2 = 4 x 1 samples in one process, and two ranks, with dropout, in float64."""
    for name in ("one", "two", "four", "ranks"):
        (tmp_path / name).mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.posttraining.ranks"]
    started = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path / "ranks")], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for name, micro in {"one": 4, "two": 2, "four": 1}.items():
        train(exact_run(tmp_path / name, micro))
    errors = [process.communicate(timeout=600)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    for name in ("two", "four", "ranks"):
        held_equal(tmp_path / "one", tmp_path / name)
    (tmp_path / "other").mkdir()
    train(exact_run(tmp_path / "other", 4, objective__head__dropout=0.0))
    assert figures(tmp_path / "other")[0] != figures(tmp_path / "one")[0], "dropout was on"


class Killed(Exception):
    pass


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    """Bit for bit over twenty steps: weights, averages, every logged figure."""
    settings = {"train__steps": 20, "train__checkpoint_every": 8, "train__validate_every": 5, "train__average": 0.9}
    settings |= {"train__evaluate": (("action_error", 5),)}
    straight = flow_run(flow_config(tmp_path / "a", **settings))
    train(straight)
    broken = flow_run(flow_config(tmp_path / "b", **settings))
    whole = broken.shares

    def failing(first: int):  # type: ignore[no-untyped-def]
        for i, share in enumerate(whole(first)):
            if i == 13:
                raise Killed
            yield share

    broken.shares = failing
    with pytest.raises(Killed):
        train(broken)
    again = flow_run(flow_config(tmp_path / "b", **settings))
    assert again.resume_from is not None and history.step_of(again.resume_from) == 8
    train(again)
    assert rows(again.folder) == rows(straight.folder)
    for kind in ("model", "average"):
        one, other = weights(tmp_path / "a", 20, kind), weights(tmp_path / "b", 20, kind)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one), kind


# --- averaged weights ------------------------------------------------------------------------------------------------


def test_an_average_follows_what_learns(tmp_path: Path) -> None:
    """Step by step the formula's; evaluations measure it, training does not see it, and `load` can take it."""
    run = flow_run(flow_config(tmp_path / "a", train__average=0.9, train__steps=6, train__checkpoint_every=6))
    name = "objective.head.position"
    seen, expected = list[torch.Tensor](), run.learner.state_dict()[name].clone()
    update = run.update

    def watched(any_row: bool, done: int) -> None:
        update(any_row, done)
        seen.append(run.learner.state_dict()[name].clone())

    run.update = watched  # type: ignore[method-assign]
    row = train(run)
    for done, value in enumerate(seen, 1):
        decay = min(0.9, (1 + done) / (10 + done))
        expected = decay * expected + (1 - decay) * value
    assert run.average is not None and torch.allclose(run.average.values[name], expected, atol=1e-7)
    assert torch.equal(run.learner.state_dict()[name], seen[-1]), "evaluations put back what is trained"
    assert run.average.values.keys() == {n for n, p in run.learner.named_parameters() if p.requires_grad}

    folder = history.address(str(tmp_path / "a/run"), 6)
    plain, averaged = checkpoint.load(folder), checkpoint.load(folder, averaged=True)
    assert torch.equal(plain.learner.state_dict()[name], seen[-1])
    assert torch.equal(averaged.learner.state_dict()[name], run.average.values[name])
    without = flow_run(flow_config(tmp_path / "b", train__steps=6, train__checkpoint_every=6))
    other = train(without)
    assert other["loss"] == row["loss"] and other["val/robot/loss_flow"] != row["val/robot/loss_flow"]
    with pytest.raises(CheckpointError, match="average"):
        checkpoint.load(history.address(str(tmp_path / "b/run"), 6), averaged=True)
    with run.average.in_place():
        held = train_loss(run)
    assert held == pytest.approx(row["val/robot/loss_flow"], rel=1e-6)


def train_loss(run) -> float:  # type: ignore[no-untyped-def]
    """Of held-out rows, with the weights that the learner has."""
    run.learner.eval()
    with torch.no_grad():
        outs = [run.learner(batch).sums for batch in run.held_out["robot"]]
    return sum(float(out["flow/sum"]) for out in outs) / sum(float(out["flow/count"]) for out in outs)
