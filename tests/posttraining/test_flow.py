"""The objective flow: whose the loss is, who learns, and where sampling leads."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from jala_ray.batch import Batch
from jala_ray.config import RunConfig
from jala_ray.config.checking import check
from jala_ray.data.samples.assets import Assets
from jala_ray.objectives.flow import Flow
from jala_ray.parsing import override
from jala_ray.presets import PRESETS
from jala_ray.training.learner import Learner
from jala_ray.training.optim import build_optimizer
from jala_ray.types import ConfigError, UserError
from tests.posttraining.world import LENGTH, flow_assets, flow_batch, flow_config
from tests.support import make_learner
from tests.training.step_ranks import norm_in_double

ROBOTS = ("left", "right")
ROWS = [3, 40, 70, LENGTH - 1, 5]
"""Of both robots, and one whose actions end within the window."""


def exact(learner: Learner) -> Learner:
    """In float64 throughout."""
    for module in learner.double().modules():
        if isinstance(module, Qwen2RMSNorm):
            module.forward = partial(norm_in_double, module)
    return learner


def made(robots: tuple[str, ...] = ("",), **values: Any) -> tuple[RunConfig, Assets, Learner]:
    config = flow_config(**values)
    assets = flow_assets(config, robots)
    return config, assets, make_learner(config, assets)


def terms(learner: Learner, batch: Batch) -> Tensor:
    return learner.run(batch)[2].terms["flow"]


@pytest.mark.parametrize("reads", ["chunk", "all"])
@pytest.mark.parametrize("packing", [True, False])
def test_a_sample_s_loss_is_its_own(reads: str, packing: bool) -> None:
    """With dropout, two robots, pictures, and samples of other lengths beside it, in float64."""
    values = {"objective__reads": reads, "objective__views": ("a",), "data__packing": packing}
    config, assets, learner = made(ROBOTS, **values)
    exact(learner).train()
    together = terms(learner, flow_batch(config, assets, ROWS, ROBOTS))
    for place, row in enumerate(ROWS):
        alone = terms(learner, flow_batch(config, assets, [row], ROBOTS))
        assert alone[0].item() == pytest.approx(together[place].item(), abs=1e-9)
    assert len(set(together.tolist())) == len(ROWS)


def test_steps_and_dimensions_that_are_not_there_do_not_count() -> None:
    config, assets, learner = made()
    learner.eval()
    batch = flow_batch(config, assets, [LENGTH - 2, 3])
    out = learner.vla(batch, learner.objective.taps)
    before = learner.objective.loss(learner.vla, batch, None, out)
    pad = batch.signals["action_is_pad"]
    assert pad[0].tolist() == [False, False, True, True] and before.has["flow"].all()

    class Marked(torch.nn.Module):
        """A head whose velocity is wrong where nothing counts."""

        def __init__(self, head: Any) -> None:
            super().__init__()
            self.head, self.dtype = head, head.dtype

        def forward(self, *given: Any) -> Tensor:
            velocity = self.head(*given)
            velocity[pad] = 1e6
            velocity[:, :, ~batch.signals["dims"][0]] = 1e6
            return velocity

    learner.objective.head = Marked(learner.objective.head)  # type: ignore[assignment]
    after = learner.objective.loss(learner.vla, batch, None, out)
    assert torch.equal(after.terms["flow"], before.terms["flow"])
    batch.signals["action_is_pad"] = torch.ones_like(pad)
    nothing = learner.objective.loss(learner.vla, batch, None, out)
    assert not nothing.has["flow"].any() and not nothing.terms["flow"].any()


def test_the_loss_is_the_flow_s() -> None:
    """Against the formula, sample by sample: x = t A + (1 - t) eps, target A - eps."""
    config, assets, learner = made()
    exact(learner).eval()
    seen: dict[str, Tensor] = {}
    objective = learner.objective
    assert isinstance(objective, Flow)
    whole = objective.head.forward

    def watched(state: Tensor, noised: Tensor, bucket: Tensor, *rest: Any) -> Tensor:
        seen.update(noised=noised, bucket=bucket, velocity=whole(state, noised, bucket, *rest))
        return seen["velocity"]

    objective.head.forward = watched  # type: ignore[method-assign]
    batch = flow_batch(config, assets, [3, 30])
    found = terms(learner, batch)
    for i in range(2):
        action, noise, t = (batch.signals[name][i].double() for name in ("action", "noise", "flow_time"))
        assert torch.allclose(seen["noised"][i], t * action + (1 - t) * noise, atol=1e-12)
        assert seen["bucket"][i] == int(np.floor(1000 * float(t)))
        off = (seen["velocity"][i] - (action - noise))[:, :2]
        assert found[i].item() == pytest.approx(off.square().mean().item(), abs=1e-12)


# --- who learns ------------------------------------------------------------------------------------------------------


def learned(values: dict[str, Any]) -> tuple[Learner, set[str], set[str]]:
    """The learner, names of what an optimizer is given, and of what a step of it moves."""
    config, assets, learner = made(objective__views=("a",), **values)
    names = {id(p): name for name, p in learner.named_parameters()}
    optimizer = build_optimizer(learner, config.optim)
    given = {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    learner.train()
    learner(flow_batch(config, assets, [3, 30])).loss.backward()
    assert {name for name, p in learner.named_parameters() if p.grad is not None} == given, "DDP waits for all of them"
    optimizer.step()
    return learner, given, {name for name, p in learner.named_parameters() if not torch.equal(p, before[name])}


def parts(names: set[str]) -> set[str]:
    known = {
        "vla.backbone.vision": "vision",
        "vla.backbone.projector": "projector",
        "vla.backbone.language": "language",
        "vla.motion_embedding": "embeddings",
        "vla.hand_embedding": "embeddings",
        "objective.head": "head",
        "objective.lsp": "lsp",
    }
    return {next(part for beginning, part in known.items() if name.startswith(beginning)) for name in names}


@pytest.mark.parametrize(
    ("learns", "expected"),
    [
        ("language", {"language", "embeddings", "head"}),
        ("all", {"language", "embeddings", "head", "vision", "projector"}),
        ("head", {"head"}),
    ],
)
def test_who_learns(learns: str, expected: set[str]) -> None:
    learner, given, moved = learned({"objective__learns": learns})
    assert parts(given) == parts(moved) == expected
    assert not any("language.norm" in name or "motion_head" in name for name in given), "nothing reads them"
    assert learner.vla.backbone.vision_learns() == (learns == "all")


def test_only_robots_of_the_run_learn() -> None:
    _, given, _ = learned({})
    assert not any(".each.1." in name for name in given) and any(".each.0." in name for name in given)
    _, _, learner = made(ROBOTS)
    assert all(p.requires_grad for name, p in learner.named_parameters() if ".each." in name)


def test_latents_of_the_moment_s_picture() -> None:
    """Added to [MASK]; LSP learns where it is said, and asks for a checkpoint that has one."""
    for latents, learns in (("fixed", False), ("learned", True)):
        learner, given, _ = learned({"objective__latents": latents})
        assert ("lsp" in parts(given)) == learns
    config, assets, learner = made(objective__views=("a", "b"), objective__latents="fixed")
    batch = flow_batch(config, assets, [3, 30])
    assert batch.frames is not None and batch.frames.shape == (2, 3, 32, 32)
    learner.eval()
    features = learner.features(batch)
    extra = learner.objective.extra(batch, features)
    assert extra is not None
    added = extra.flatten(0, 1).abs().sum(-1) > 0
    assert added.nonzero()[:, 0].tolist() == batch.state_at.sort().values.tolist()
    with pytest.raises(ConfigError, match=r"--objective\.latents none"):
        check(override(PRESETS["tiny_libero_spatial"], {"data.manifest": "m", "motion_tokenizer": "t"}))


def test_blocks_above_the_layer_are_dropped() -> None:
    config, _, learner = made(objective__layer=2)
    assert config.model.backbone.language.layers == 4
    assert learner.vla.backbone.n_layers == len(learner.vla.backbone.blocks) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective.layer": 5}, r"objective\.layer.*1\.\.4"),
        ({"objective.views": ("a", "a")}, "every camera once"),
        ({"objective.action": ()}, r"objective\.action"),
        ({"objective.head.heads": 3}, r"objective\.head\.width"),
        ({"objective.steps": 0}, r"objective\.steps"),
        ({"objective.rate_hz": 0.0}, r"objective\.rate_hz"),
        ({"objective.embodiments": ("a", "b", "c")}, "at most objective.head.embodiments = 2"),
        ({"objective.latents": "fixed", "objective.reads": "all"}, r"objective\.latents"),
        ({"motion_tokenizer": ""}, "jala tokenizer"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(override(flow_config(), values))
    check(flow_config())


def test_all_tokens_need_no_motion_tokenizer() -> None:
    check(override(flow_config(objective__reads="all"), {"motion_tokenizer": ""}))


def test_more_robots_than_the_head_s_are_refused() -> None:
    with pytest.raises(UserError, match=r"at most 2.*objective\.head\.embodiments"):
        made(("a", "b", "c"))


def test_longer_states_than_the_head_s_are_refused() -> None:
    with pytest.raises(UserError, match=r"at most 3.*objective\.head\.state_dim"):
        made(objective__head__state_dim=3)


# --- sampling --------------------------------------------------------------------------------------------------------


def sampled(field: Any, steps: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Where a velocity field `field(x, t)` leads, from which noise, and the actions of the batch."""
    config, assets, learner = made(objective__steps=steps)
    exact(learner).eval()
    objective = learner.objective
    assert isinstance(objective, Flow)
    objective.head.velocity = lambda state, x, bucket, *rest: field(x, bucket.double()[:, None, None] / 1000)  # type: ignore[method-assign]
    batch = flow_batch(config, assets, [3, 30])
    out = learner.vla(batch, objective.taps)
    noise = batch.signals["noise"].double()
    return objective.sample(learner.vla, batch, out, noise), noise, batch.signals["action"].double()


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_euler_steps_are_exact_on_linear_fields(steps: int) -> None:
    """A constant one; one that grows with x; and the straight paths to a point, whose velocity is the target along them."""
    found, noise, _ = sampled(lambda x, t: torch.full_like(x, 0.75), steps)
    there = noise != 0
    assert (found - (noise + 0.75))[there].abs().max() < 1e-12 and not found[..., 2].any(), "no third dimension"
    found, noise, _ = sampled(lambda x, t: -2 * x, steps)
    assert (found - noise * (1 - 2 / steps) ** steps).abs().max() < 1e-12
    _, _, action = sampled(lambda x, t: x, 1)
    found, _, _ = sampled(lambda x, t: (action - x) / (1 - t), steps)
    assert (found - action).abs().max() < 1e-12


def test_the_paper_s_sign_leads_away() -> None:
    """eps - A, integrated from noise, ends as far from the actions on the other side."""
    _, noise, action = sampled(lambda x, t: x, 1)
    right, _, _ = sampled(lambda x, t: action - noise)
    wrong, _, _ = sampled(lambda x, t: noise - action)
    assert (right - action).abs().max() < 1e-12
    assert (wrong - (2 * noise - action)).abs().max() < 1e-12


def test_sampling_drops_nothing_and_follows_the_noise() -> None:
    config, assets, learner = made()
    batch = flow_batch(config, assets, [3, 30])
    objective = learner.objective
    assert isinstance(objective, Flow)
    out = learner.vla(batch, objective.taps)
    noise = batch.signals["noise"]
    one, again = (objective.train(mode).sample(learner.vla, batch, out, noise) for mode in (True, False))
    assert torch.equal(one, again) and one.shape == (2, 4, 3) and not one.requires_grad
    assert not torch.equal(objective.sample(learner.vla, batch, out, noise.flip(1)), one)


def test_the_head_is_float32_around_halves() -> None:
    config, assets, learner = made()
    batch = flow_batch(config, assets, [3, 30])
    learner.eval()
    objective = learner.objective
    assert isinstance(objective, Flow)
    with torch.autocast("cpu", torch.bfloat16):
        out = learner.vla(batch, objective.taps)
        inside = objective.loss(learner.vla, batch, None, out).terms["flow"]
        acted = objective.sample(learner.vla, batch, out, batch.signals["noise"])
    assert inside.dtype == acted.dtype == torch.float32
    assert torch.equal(inside, objective.loss(learner.vla, batch, None, out).terms["flow"]), "autocast is off within"


def test_presets_are_the_papers() -> None:
    for name, (views, steps) in {"libero_long": (2, 30_000), "robocasa_human": (3, 60_000)}.items():
        config = PRESETS[name]
        flow = config.objective
        assert (config.train.steps, config.train.batch, config.optim.lr, config.optim.warmup) == (
            steps,
            128,
            1e-4,
            0.05,
        )
        assert (flow.layer, flow.steps, flow.learns, flow.reads) == (19, 4, "language", "chunk")  # type: ignore[attr-defined]
        assert len(flow.views) == views and flow.augment.on  # type: ignore[attr-defined]
        assert (flow.head.width, flow.head.layers, flow.head.heads) == (2048, 16, 32)  # type: ignore[attr-defined]
        assert replace(flow, latents="none").inherits == () and flow.inherits == ("lsp",)
