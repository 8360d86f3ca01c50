"""How much of a packed micro-batch is padding, with the paper's tokens per chunk and mixes of tasks."""

from __future__ import annotations

import pytest

from benchmarks.step_samples import MIXES, make_step, noise_assets
from benchmarks.step_sizes import SIZES, run_config
from jala_ray.presets import PRESETS

LEAST = 8192
"""Tokens of a micro-batch from which on padding shall be small."""


@pytest.mark.parametrize("mix", MIXES)
def test_padding_of_a_large_micro_batch_is_at_most_one_hundredth(mix: str) -> None:
    data = PRESETS["jala"].data
    assert data.packing
    settings = {"data.pad_multiple": data.pad_multiple, "train.micro_tokens": 2 * LEAST}
    config = run_config(SIZES["tiny"], 96, 64, settings)
    assets = noise_assets(config)
    micro = [batch for seed in range(2) for batch in make_step(config, assets, MIXES[mix], 96, seed).share.micro]
    tokens = {id(batch): int((batch.sample >= 0).sum()) for batch in micro}
    large = [batch for batch in micro if tokens[id(batch)] >= LEAST]
    assert len(large) >= 4
    slots = sum(batch.ids.numel() for batch in large)
    assert 0 < 1 - sum(tokens[id(batch)] for batch in large) / slots <= 0.01
