"""A policy that sees no pictures learns to bring a point to a goal; with the papers' sign it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jala_ray.objectives.flow import Flow
from jala_ray.training.trainer import train
from tests.posttraining.world import PointPolicy, flow_config, flow_run, reached


def policy(root: Path) -> PointPolicy:
    """After a run over scripted demonstrations."""
    sizes = {"width": 64, "layers": 4, "heads": 4, "hidden": 32, "future_tokens": 0, "dropout": 0.0}
    settings = {f"objective__head__{name}": size for name, size in sizes.items()}
    settings |= {"train__steps": 250, "train__batch": 32, "train__micro_batch": 32, "train__log_every": 50}
    settings |= dict.fromkeys(("train__checkpoint_every", "train__validate_every", "train__monitor_every"), 250)
    settings |= {"optim__lr": 5e-3, "objective__learns": "head", "objective__reads": "all"}
    run = flow_run(flow_config(root, **settings), episodes=300)
    train(run)
    return PointPolicy(run.config, run.assets, run.learner)


def test_it_reaches_goals_that_no_demonstration_had(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert reached(policy(tmp_path)) >= 18


def test_the_other_sign_reaches_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flow, "target", lambda self, action, noise: noise - action)
    assert reached(policy(tmp_path)) <= 2
