"""Losses, schedule, batches, the loop, and two ranks against one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jala_ray.tokenizer.model import MotionTokenizer, TokenizerConfig
from jala_ray.tokenizer.quantizer import EmaQuantizer
from jala_ray.tokenizer.training import (
    FitResult,
    TokenizerLearner,
    TokenizerTrainConfig,
    batches,
    build_optimizer,
    fit,
    learning_rate,
    train_step,
    velocity_loss,
)
from jala_ray.types import ConfigError, UserError

TINY = TokenizerConfig(width=16, levels=2, codes=16, decay=0.9)


def test_velocity_is_a_finite_difference() -> None:
    target = torch.randn(4, 15, 9)
    assert velocity_loss(target + 5.0, target) < 1e-10  # an offset has no velocity
    ramp = torch.arange(15.0).view(1, 15, 1)
    assert torch.allclose(velocity_loss(target + 0.5 * ramp, target), torch.tensor(0.5 * 0.5**2), atol=1e-5)
    other = torch.randn(4, 15, 9)
    steps = [F.smooth_l1_loss(other[:, i + 1] - other[:, i], target[:, i + 1] - target[:, i]) for i in range(14)]
    assert torch.allclose(velocity_loss(other, target), torch.stack(steps).mean())


def test_loss_is_the_stated_sum(motions: Tensor) -> None:
    config = dataclasses.replace(TINY, commitment=0.3, velocity=0.7)
    losses = TokenizerLearner(MotionTokenizer(config), batch=64)({"features": motions[:64]})
    expected = sum(
        losses[f"loss_rec_{p}"] + 0.7 * losses[f"loss_vel_{p}"] + 0.3 * losses[f"loss_commit_{p}"]
        for p in ("wrist", "finger")
    )
    assert len(losses) == 7 and all(value.shape == () for value in losses.values())
    assert torch.allclose(losses["loss"], torch.as_tensor(expected))


def test_every_parameter_learns(motions: Tensor) -> None:
    learner = TokenizerLearner(MotionTokenizer(TINY), batch=64)
    learner({"features": motions[:64]})["loss"].backward()
    silent = [n for n, p in learner.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_training_reconstructs_smooth_motions(trained: FitResult) -> None:
    first, last = trained.history[0], trained.history[-1]
    assert last["step"] == 119
    assert last["loss"] < 0.25 * first["loss"]
    # The data's own spread scores about 0.4 in these normalised units.
    assert last["val_rec_wrist"] < 0.05 and last["val_rec_finger"] < 0.05
    evaluated = [row["val_rec_wrist"] for row in trained.history if "val_rec_wrist" in row]
    assert len(evaluated) == 2 and evaluated[1] < evaluated[0]


def test_a_seed_gives_one_tokenizer_and_leaves_the_global_state(motions: Tensor) -> None:
    train = TokenizerTrainConfig(steps=4, batch=32, lr=1e-3)
    before = torch.get_rng_state()
    first, second = (fit(motions, TINY, train).tokenizer.state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = fit(motions, TINY, dataclasses.replace(train, seed=1)).tokenizer.state_dict()
    assert not torch.equal(first["parts.wrist.codebooks.vectors"], other["parts.wrist.codebooks.vectors"])


def test_a_resumed_learner_continues_exactly(motions: Tensor) -> None:
    train = TokenizerTrainConfig(steps=4, batch=32, lr=1e-3)
    config = dataclasses.replace(TINY, dead_code_threshold=0.0)  # replacing draws from the global generator

    def start() -> tuple[TokenizerLearner, torch.optim.AdamW]:
        torch.manual_seed(0)
        learner = TokenizerLearner(MotionTokenizer(config), train.batch)
        return learner, build_optimizer(learner, train)

    def run(learner: TokenizerLearner, optimizer: torch.optim.AdamW, first: int, last: int) -> list[float]:
        chosen = list(batches(len(motions), train, start=first))[: last - first]
        return [
            train_step(learner, optimizer, {"features": motions[indices]}, first + i, train)["loss"]
            for i, indices in enumerate(chosen)
        ]

    straight = run(*start(), 0, 4)
    learner, optimizer = start()
    losses = run(learner, optimizer, 0, 2)
    again, again_optimizer = start()
    again.load_state_dict(learner.state_dict())
    again_optimizer.load_state_dict(optimizer.state_dict())
    assert losses + run(again, again_optimizer, 2, 4) == straight


def test_export_copies_the_learned_codebooks(motions: Tensor) -> None:
    learner = TokenizerLearner(MotionTokenizer(TINY), batch=64)
    learner({"features": motions[:64]})
    tokenizer = learner.export()
    for name, quantizer in learner.quantizers.items():
        assert isinstance(quantizer, EmaQuantizer)
        assert torch.equal(tokenizer.part(name).codebooks.vectors, quantizer.codebooks())


def test_schedule() -> None:
    config = TokenizerTrainConfig(steps=100, lr=1.0, warmup=0.1)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1) and rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(0, dataclasses.replace(config, steps=1)) == 1.0


def test_batches_cover_each_epoch_and_are_dealt_out() -> None:
    """Every number of workers sees the same steps, in parts that differ by at most one chunk."""
    config = TokenizerTrainConfig(steps=6, batch=10, seed=3)
    alone = list(batches(20, config))
    for epoch in range(3):
        assert sorted(np.concatenate(alone[2 * epoch : 2 * epoch + 2])) == list(range(20))
    assert not np.array_equal(alone[0], alone[2])
    for ranks in (1, 2, 3, 10):
        parts = [list(batches(20, config, rank, ranks)) for rank in range(ranks)]
        for step in range(6):
            assert np.array_equal(np.concatenate([part[step] for part in parts]), alone[step])
        sizes = {len(part[0]) for part in parts}
        assert max(sizes) - min(sizes) <= 1
    resumed = list(batches(20, config, start=4))
    assert all(np.array_equal(a, b) for a, b in zip(resumed, alone[4:], strict=True))
    with pytest.raises(UserError, match=r"train\.batch.*11 workers"):
        next(batches(20, config, 0, 11))


def test_divergence_is_said() -> None:
    with pytest.raises(UserError, match=r"grad_norm.*Lower train\.lr"):
        fit(torch.randn(32, 15, 99), TINY, TokenizerTrainConfig(steps=20, batch=16, lr=1e30, warmup=0.0))


def test_fewer_chunks_than_a_batch() -> None:
    [indices] = batches(3, TokenizerTrainConfig(steps=1, batch=8))
    assert len(indices) == 8 and np.bincount(indices, minlength=3).min() >= 2


def test_bad_input_is_refused() -> None:
    train = TokenizerTrainConfig(steps=1, batch=4)
    with pytest.raises(UserError, match=r"\(4, 16, 99\)"):
        fit(torch.zeros(4, 16, 99), TINY, train)
    with pytest.raises(UserError, match="no frames"):
        fit(torch.zeros(0, 15, 99), TINY, train)
    for field, value in (("steps", 0), ("lr", 0.0), ("warmup", 2.0)):
        with pytest.raises(ConfigError, match=field):
            dataclasses.replace(train, **{field: value})
