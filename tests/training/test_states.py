"""AdamW's moments in 8 bits (`optim.states`): exact resume, what they take, and the line that says what is missing."""

from __future__ import annotations

import builtins
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jala_ray.config import RunConfig
from jala_ray.parsing import override
from jala_ray.presets import TINY
from jala_ray.training import history
from jala_ray.training.estimate import Data, compute
from jala_ray.training.optim import build_optimizer, set_lr
from jala_ray.training.trainer import train
from jala_ray.types import ConfigError
from tests.support import make_learner
from tests.training.run import make_run, run_config
from tests.training.test_loop import Killed, rows

DATA = Data(1000, 5.0, "a test")
there = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is absent: `make test-8bit`")


@pytest.fixture(autouse=True)
def _not_compiled() -> Iterator[None]:
    """torchao compiles a parameter's step; the same operations, one by one, take no compiler's minute."""
    with torch.compiler.set_stance("force_eager"):
        yield


def config_of(root: Path, **values: Any) -> RunConfig:
    return run_config(root, **{"optim__states": "8bit", "model__backbone__language__hidden": 64, **values})


@there
def test_resume_is_exact(tmp_path: Path) -> None:
    straight, broken = make_run(config_of(tmp_path / "a")), make_run(config_of(tmp_path / "b"))
    train(straight)
    whole = broken.shares

    def failing(first: int):
        for i, share in enumerate(whole(first)):
            if i == 3:
                raise Killed
            yield share

    broken.shares = failing
    with pytest.raises(Killed):
        train(broken)
    again = make_run(config_of(tmp_path / "b"))
    assert again.resume_from is not None and history.step_of(again.resume_from) == 2
    train(again)
    assert rows(again.folder) == rows(straight.folder)
    mine, theirs = again.learner.state_dict(), straight.learner.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


@there
def test_it_learns_as_with_whole_moments(tmp_path: Path) -> None:
    """Of steps of about lr, 8 bits lose a few hundredths."""
    found, rates = {}, {}
    for states in ("fp32", "8bit"):
        run = make_run(config_of(tmp_path / states, optim__states=states))
        train(run)
        found[states] = run.learner.vla.motion_head.weight.detach()
        rates[states] = [row["lr"] for row in rows(run.folder)]
    assert rates["8bit"] == pytest.approx(rates["fp32"]) and len(set(rates["8bit"])) > 1
    start = make_learner(config_of(tmp_path)).vla.motion_head.weight.detach()
    moved = found["fp32"] - start
    assert 0 < (found["8bit"] - found["fp32"]).norm() < 0.2 * moved.norm()


@there
def test_what_they_take(tmp_path: Path) -> None:
    """A moment of a matrix of at least 4,096 numbers is a byte each, and a scale for 256 of them."""
    config = config_of(tmp_path)
    learner = make_learner(config)
    optimizer = build_optimizer(learner, config.optim)
    set_lr(optimizer, 0.5)
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.5, 0.5]
    for parameter in learner.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    words = next(p for p in learner.parameters() if p.requires_grad and p.numel() >= 4096 and not p.numel() % 256)
    bias = next(p for p in learner.parameters() if p.requires_grad and p.ndim == 1)
    for moment in (optimizer.state[words][name] for name in ("exp_avg", "exp_avg_sq")):
        assert (moment.codes.nbytes, moment.scale.nbytes) == (words.numel(), words.numel() // 256 * 4)
    assert optimizer.state[bias]["exp_avg"].dtype == torch.float32


def test_what_is_computed_of_them() -> None:
    whole, small = (compute(override(TINY, {"optim.states": states}), DATA) for states in ("fp32", "8bit"))
    assert small.footprint.optimizer / small.learned == pytest.approx(2 + 8 / 256)
    assert whole.footprint.optimizer == 8 * whole.learned and whole.memory > small.memory
    assert whole.checkpoint - small.checkpoint == whole.footprint.optimizer - small.footprint.optimizer


def test_without_torchao_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.startswith("torchao"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"optim\.states.*8bit.*pip install 'jala-ray\[8bit\]'"):
        make_run(config_of(tmp_path)).begin()
