"""What a step is said to need is what torch counts when nothing else is executed; padding and forbidden keys are not in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jala_ray.batch import Batch
from jala_ray.config import RunConfig
from jala_ray.presets import PRESETS
from jala_ray.training.flops import Flops, Prices, Workload, measured, product
from jala_ray.training.learner import Learner
from jala_ray.training.peaks import peak_by_name, peak_tflops
from tests.support import MIXED, lay_out, make_assets, make_batch, make_learner, small

OBJECTIVES = (
    *("tiny", "tiny_vjepa", "tiny_qwen", "tiny_no_align", "tiny_no_lsp", "tiny_no_decoupling", "tiny_align_only"),
    *("tiny_change_head", "tiny_next_token", "tiny_next_token_dino", "tiny_lapa_actions", "tiny_lapa_codes"),
    *("tiny_grounded", "tiny_grounded_learned", "tiny_posterior"),
)

KINDS = MIXED[1::2]
"""One of each task."""


def made(preset: str, **values: Any) -> tuple[RunConfig, Learner, list[Batch]]:
    """A learner, and a sample of each task as a batch of its own, without padding."""
    config = small(PRESETS[preset], **values)
    assets = make_assets(config)
    laid = lay_out(config, assets, KINDS)
    return config, make_learner(config, assets), [make_batch([sample]) for sample in laid]


def executed(batch: Batch) -> Workload:
    """As it is on a CPU, where every query meets its whole sample, and a sample stands for a deep one where none is read."""
    work, deep = Workload.of(batch), int(batch.deep)
    length = work.tokens
    return replace(work, deep=deep, seen=length**2, deep_seen=deep * length, read_seen=work.read * length)


def counted(learner: Learner, batch: Batch) -> Flops:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss = learner(batch).loss
        forward = counter.get_total_flops()
        loss.backward()
    return Flops(forward, counter.get_total_flops() - forward)


@pytest.mark.parametrize("preset", OBJECTIVES)
def test_needed_flops_are_those_that_torch_counts(preset: str) -> None:
    _, learner, batches = made(preset)
    prices = Prices.of(learner)
    told = sum((prices.needs(executed(batch)) for batch in batches), Flops())
    found = sum((counted(learner, batch) for batch in batches), Flops())
    assert told.forward == pytest.approx(found.forward, rel=0.02)
    assert told.backward == pytest.approx(found.backward, rel=0.02)


@pytest.mark.parametrize("preset", ["tiny", "tiny_qwen"])
def test_a_tower_that_learns_costs_its_backward_pass(preset: str) -> None:
    _, learner, batches = made(preset, model__backbone__freeze_vision=False)
    told, found = Prices.of(learner).needs(executed(batches[0])), counted(learner, batches[0])
    assert told.total == pytest.approx(found.total, rel=0.02)
    assert Prices.of(learner).picture.backward > 5 * Prices.of(made(preset)[1]).picture.backward


def test_measuring_changes_nothing() -> None:
    _, learner, _ = made("tiny")
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in learner.state_dict().items()}
    Prices.of(learner)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in learner.state_dict().items())
    assert all(p.grad is None and not p.is_meta for p in learner.parameters())


def test_neither_padding_nor_packing_is_work() -> None:
    config, _, batches = made("tiny")
    laid = lay_out(config, make_assets(config), KINDS)
    alone = [Workload.of(batch) for batch in batches]
    packed = Workload.of(make_batch(laid, packing=True, pad_multiple=128))
    padded = Workload.of(make_batch(laid))
    summed = {name: sum(getattr(work, name) for work in alone) for name in vars(packed)}
    assert vars(packed) == vars(padded) == summed
    assert packed.deep < packed.tokens and packed.read < packed.deep
    assert packed.seen < sum(work.tokens**2 for work in alone) and packed.read_seen < packed.deep_seen < packed.seen


def test_a_sample_that_only_fills_the_batch_is_no_work() -> None:
    _, learner, (batch, *_) = made("tiny")
    batch.weight[:] = 0
    assert Prices.of(learner).needs(Workload.of(batch)) == Flops()


def test_nothing_above_the_tap_is_needed_for_a_sample_without_labels() -> None:
    """Nor any block without a tap."""
    config, learner, batches = made("tiny", objective__align__layer=3)
    prices = Prices.of(learner)
    video = Workload.of(batches[next(i for i, kind in enumerate(KINDS) if kind.task == "pure_video")])
    assert (video.deep, video.read) == (0, 0) and video.aligned
    three = 3 * (video.tokens * prices.language.block + video.seen * prices.language.pair)
    assert prices.language.needs(video, 3) == three and prices.language.needs(video, 0) == Flops()
    assert config.model.backbone.language.layers == 4


def test_the_last_block_is_for_read_places_but_for_keys_and_values() -> None:
    _, learner, batches = made("tiny_no_align")
    language, work = Prices.of(learner).language, Workload.of(batches[0])
    width = learner.vla.backbone.hidden_size
    per_token = 2 * sum(p.numel() for p in learner.vla.backbone.blocks[-1].parameters() if p.ndim == 2)
    keys = 2 * width * 2 * (width // 2)  # two of four heads
    whole = 3 * (work.deep * per_token + 4 * width * work.deep_seen)
    last = work.deep * keys + work.read * (per_token - keys) + 4 * width * work.read_seen
    assert language.needs(work, 0).forward == whole + last


def test_a_cache_needs_no_encoder() -> None:
    _, learner, batches = made("tiny")
    prices, work = Prices.of(learner), Workload.of(batches[0])
    features = learner.encoder(batches[0].frames)
    cached = Workload.of(replace(batches[0], frames=None, frame_features=features))
    assert work.frames and cached == replace(work, frames=0, frame_pairs=0)
    saved = prices.needs(work) - prices.needs(cached)
    assert saved.forward == pytest.approx(work.frames * prices.frame.forward) and saved.backward == 0


def test_an_objective_of_ones_own_costs_what_is_known_of_it() -> None:
    """The backbone and the heads; its own modules are left out, and a module that can't run on the meta device costs nothing."""
    from jala_ray.objectives.next_token import NextToken

    class Mine(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.sum())

    _, learner, batches = made("tiny_next_token")
    assert isinstance(learner.objective, NextToken)
    assert Prices.of(learner).needs(Workload.of(batches[0])).total > 0
    assert measured(Mine(), torch.empty(2, device="meta")) == Flops()


def test_what_is_frozen_passes_gradients_on() -> None:
    assert product(3, 5, 1.0, True) == Flops(30, 60)
    assert product(3, 5, 0.0, True) == Flops(30, 30)
    assert product(3, 5, 1.0, False) == Flops(30, 30)
    assert product(3, 5, 0.0, False) == Flops(30, 0)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", None),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA GeForce RTX 4090", 165.0),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA B200", 2250.0),
        ("Radeon", None),
    ],
)
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert peak_by_name(name) == peak


def test_a_cpu_has_a_peak_by_setting_alone() -> None:
    cpu = torch.device("cpu")
    assert peak_tflops(cpu) is None and peak_tflops(cpu, 0.5) == 0.5
