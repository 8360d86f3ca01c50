"""Smooth synthetic hand motions and one small tokenizer trained on them, shared by the room's tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jala_ray.hands.features import pose_to_features
from jala_ray.hands.rotations import axis_angle_to_matrix
from jala_ray.tokenizer.model import TokenizerConfig
from jala_ray.tokenizer.training import FitResult, TokenizerTrainConfig, fit
from jala_ray.types import Hand


def smooth_motions(count: int, seed: int) -> Tensor:
    """(count, 15, 99) features: a two-parameter grasp, a turning and travelling wrist, each a smooth move."""
    generator = torch.Generator().manual_seed(seed)

    def move(dim: int) -> Tensor:
        start, step, when, pace = torch.rand(4, count, 1, dim, generator=generator)
        time = torch.linspace(0, 1, 15).view(1, 15, 1)
        return 2 * start - 1 + (2 * step - 1) * torch.sigmoid((4 + 6 * pace) * (time - 0.2 - 0.6 * when))

    synergies = torch.randn(2, 45, generator=torch.Generator().manual_seed(99)) * 0.4
    theta = axis_angle_to_matrix((move(2) @ synergies).view(count, 15, 15, 3))
    rot = axis_angle_to_matrix(0.5 * move(1) * torch.tensor([0.6, 0.8, 0.0]))
    wrist = move(2) @ torch.tensor([[0.2, 0.0, 0.05], [0.0, 0.15, 0.05]]) + torch.tensor([0.0, 0.0, 0.5])
    return pose_to_features(theta, rot, wrist, Hand.RIGHT)


SMALL = TokenizerConfig(width=32, groups=2, levels=2, codes=32, decay=0.95)


@pytest.fixture(scope="session")
def motions() -> Tensor:
    return smooth_motions(256, seed=1)


@pytest.fixture(scope="session")
def held_out() -> Tensor:
    return smooth_motions(64, seed=2)


@pytest.fixture(scope="session")
def trained(motions: Tensor, held_out: Tensor) -> FitResult:
    train = TokenizerTrainConfig(steps=120, batch=64, lr=8e-3, log_every=10, eval_every=60)
    return fit(motions, SMALL, train, held_out=held_out)
