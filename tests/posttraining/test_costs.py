"""What post-training is said to need, against what torch counts."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from jala_ray.commands import posttrain
from jala_ray.models.action_head import OneRobot
from jala_ray.objectives.flow import Flow
from jala_ray.parsing import override
from jala_ray.presets import PRESETS
from jala_ray.training.cards import CARDS, MFU, on_cards, told
from jala_ray.training.estimate import CARD_GB, GB, Data, compute, on_meta, what_fits
from jala_ray.training.flops import Prices, Workload
from jala_ray.training.footprint import Kept, Pass, condition_tokens
from jala_ray.types import ConfigError
from tests.posttraining.world import flow_assets, flow_batch, flow_config
from tests.support import make_learner
from tests.training.test_flops import counted, executed
from tests.training.test_footprint import saved

DATA = Data(1000, 5.0, "a test")
ONE_SAMPLE = Workload(1, *[0] * (len(fields(Workload)) - 1))


@pytest.mark.parametrize("learns", ["language", "head", "all"])
def test_needed_flops_are_those_that_torch_counts(learns: str) -> None:
    config = flow_config(objective__views=("a", "b"), objective__learns=learns, data__pad_multiple=1)
    assets = flow_assets(config)
    learner = make_learner(config, assets)
    batch = flow_batch(config, assets, [3])
    told, found = Prices.of(learner).needs(executed(batch)), counted(learner, batch)
    assert told.forward == pytest.approx(found.forward, rel=0.02)
    assert told.backward == pytest.approx(found.backward, rel=0.02)


def test_a_head_keeps_what_is_computed() -> None:
    """Of each sample, in training with dropout, whatever is around it."""
    config = flow_config()
    assets = flow_assets(config)
    learner = make_learner(config, assets).train()
    objective = learner.objective
    assert isinstance(objective, Flow)
    one, tokens = OneRobot(objective.head), condition_tokens(objective, learner)
    kept = [saved(one, lambda n=n: one(*one.inputs(n, tokens, learner.vla.backbone.hidden_size)))[1] for n in (2, 6)]
    assert kept[1] - kept[0] == pytest.approx(4 * Kept(learner, True).by_action_head(), rel=0.05)


def test_what_a_preset_takes() -> None:
    """19 of 28 blocks, samples of one length, no head of words; and a card of 24 GB has settings that hold it."""
    config = override(PRESETS["libero_spatial"], {"cluster.workers": 1})
    learner, views = on_meta(config), len(config.objective.views)  # type: ignore[attr-defined]
    assert learner.vla.backbone.n_layers == 19
    found = compute(config, DATA)
    assert found.tokens_sequence == views * 258 + 130 + 64 and found.steps == config.train.steps
    assert Pass.of(learner, config).pairs == 0 and found.footprint.text == 0
    assert found.flops_step == pytest.approx(128 * compute(override(config, {"train.batch": 1}), DATA).flops_step)
    averaged = compute(override(config, {"train.average": 0.999}), DATA)
    assert averaged.footprint.optimizer == pytest.approx(1.5 * found.footprint.optimizer)
    assert averaged.checkpoint - found.checkpoint == pytest.approx(4 * found.learned)
    fit = what_fits(config, CARD_GB)
    assert fit is not None and fit[1] <= CARD_GB * GB
    assert torch.device("meta") == next(learner.parameters()).device


def test_hours_on_a_card_are_flops_over_its_peak() -> None:
    """By hand, and on screen with the arithmetic; a tiny preset fits as it is."""
    config = override(flow_config(), {"train.steps": 1000, "train.batch": 64})
    found = on_cards(config, DATA, 0.5)
    every = 64 * compute(override(config, {"train.batch": 1}), DATA).flops_step
    head = 64 * Prices.of(on_meta(config)).own(ONE_SAMPLE).total
    for card, one in zip(CARDS, found, strict=True):
        assert one is not None and one.changes == {} and one.memory <= card.gb * GB
        assert one.flops_step == pytest.approx(every) and one.flops_float32 == pytest.approx(head)
        peak = {"RTX 4090": (165, 82.6), "A100": (312, 19.5), "H100": (989, 67)}[card.name]
        seconds = (every - head) / (0.5e12 * peak[0]) + head / (0.5e12 * peak[1])
        assert one.step_s == pytest.approx(seconds) and one.hours == pytest.approx(1000 * seconds / 3600)
    said = told(config, DATA, 0.5)
    assert "50% of its peak is an assumption, no measurement" in said
    assert said.count("/ 312 TFLOP/s in bf16 + ") == said.count("/ 19.5 in float32) / 50% = ") == 1
    for share in (0.0, 1.5):
        with pytest.raises(ConfigError, match="mfu"):
            on_cards(config, DATA, share)
    assert posttrain.Arguments.__dataclass_fields__["mfu"].default == MFU


def test_presets_of_one_name_cost_the_same_on_a_card() -> None:
    """The guide's table has one of each."""
    for name in ("libero", "robocasa"):
        several = [config for key, config in PRESETS.items() if key.startswith(f"{name}_")]
        blank = {"name": "", "train.checkpoint_every": 1}
        assert len({override(config, blank) for config in several}) == 1, name
