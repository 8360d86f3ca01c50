"""LAP, LSP, who learns from what, and the decoupled EMA (method.md 5)."""

import copy
from dataclasses import replace
from typing import Literal

import pytest
import torch

from jala_ray.config import PerceiverConfig
from jala_ray.config.checking import check
from jala_ray.models.perceiver import Perceiver, decoupled_ema
from jala_ray.presets import PRESETS
from jala_ray.training.optim import build_optimizer
from jala_ray.types import ConfigError
from tests.support import lay_out, make_assets, make_batch, make_learner, small


def perceiver(reads: Literal["frames", "change"] = "frames") -> Perceiver:
    torch.manual_seed(1)
    return Perceiver(
        PerceiverConfig(width=16, layers=2, heads=2, reads=reads), n_queries=6, feature_dim=8, grid=(2, 3), out_dim=10
    )


def test_frames_have_an_order() -> None:
    """z(a, b) != z(b, a), and the positions of patches count (decision)."""
    model, features = perceiver(), torch.randn(4, 2, 6, 8)
    z = model(features)
    assert z.shape == (4, 2, 6, 10)
    assert (z - model(features.flip(1))).abs().mean() > 1e-4
    assert (z - model(features.flip(2))).abs().mean() > 1e-4
    assert (z[:, 0] - z[:, 1]).abs().mean() > 1e-3, "left and right heads differ"


def test_no_pairs_is_no_error() -> None:
    assert perceiver()(torch.zeros(0, 2, 6, 8)).shape == (0, 2, 6, 10)


def test_frames_are_read_as_they_were() -> None:
    """Names, initial weights and values of the default, to the bit: old checkpoints hold them."""
    model, features = perceiver().backbone, torch.randn(4, 2, 6, 8)
    torch.manual_seed(1)
    torch.randn(6, 16)  # the queries
    project, embedding = torch.nn.Linear(8, 16), 0.02 * torch.randn(2, 16)
    assert torch.equal(model.project.weight, project.weight) and torch.equal(model.frame_embedding, embedding)
    context = project(features) + model.positions + embedding[:, None]
    assert torch.equal(model.tokens(features), context.flatten(1, 2))


def test_change_is_one_token_a_patch() -> None:
    model, features = perceiver("change"), torch.randn(4, 2, 6, 8)
    backbone, z = model.backbone, model(features)
    assert backbone.tokens(features).shape == (4, 6, 16) and backbone.frame_embedding is None
    still = features[:, :1].expand(-1, 2, -1, -1)
    first, moved = backbone.project.weight.split(8, dim=1)
    expected = features[:, 0] @ first.T + (features[:, 1] - features[:, 0]) @ moved.T + backbone.project.bias
    torch.testing.assert_close(backbone.tokens(features), expected + backbone.positions)
    torch.testing.assert_close(
        backbone.tokens(still), backbone.tokens(features) - (features[:, 1] - features[:, 0]) @ moved.T
    )
    for other in (features.flip(1), features.flip(2), still):
        assert (z - model(other)).abs().mean() > 1e-4


def test_who_learns_where_change_is_read() -> None:
    """As where frames are: LAP's queries, LSP's backbone. LSP's own pair shows no change, so it learns nothing of reading one."""
    config = small(objective__perceiver__reads="change")
    learner = make_learner(config, make_assets(config))
    learner(make_batch(lay_out(config, make_assets(config)))).loss.backward()
    lap, lsp = learner.objective.lap, learner.objective.lsp
    assert (
        lap.queries.grad.any() and lsp.queries.grad is None and all(p.grad is None for p in lap.backbone.parameters())
    )
    first, moved = lsp.backbone.project.weight.grad.chunk(2, dim=1)
    assert first.any() and not moved.any()


def test_change_needs_features_of_single_frames() -> None:
    with pytest.raises(ConfigError, match=r"model\.encoder\.kind: got 'vjepa2', expected dinov3"):
        check(small(PRESETS["tiny_vjepa"], objective__perceiver__reads="change"))


def test_ema_formula() -> None:
    lsp = perceiver()
    lap = copy.deepcopy(lsp)
    for p in lsp.backbone.parameters():
        torch.nn.init.normal_(p)
    torch.nn.init.normal_(lap.queries)
    start, goal = [p.clone() for p in lap.backbone.parameters()], [p.clone() for p in lsp.backbone.parameters()]
    queries, queries_goal = lsp.queries.clone(), lap.queries.clone()
    alpha, k = 0.9, 5
    for _ in range(k):
        decoupled_ema(lap, lsp, alpha)
    for p, a, b in zip(lap.backbone.parameters(), start, goal, strict=True):
        torch.testing.assert_close(p, alpha**k * a + (1 - alpha**k) * b)
    torch.testing.assert_close(lsp.queries, alpha**k * queries + (1 - alpha**k) * queries_goal)
    assert all(torch.equal(p, b) for p, b in zip(lsp.backbone.parameters(), goal, strict=True)), (
        "LSP's backbone is not moved"
    )
    assert torch.equal(lap.queries, queries_goal)


def test_who_learns_from_what() -> None:
    config = small()
    assets = make_assets(config)
    learner = make_learner(config, assets)
    lap, lsp = learner.objective.lap, learner.objective.lsp
    before = copy.deepcopy(learner.objective.state_dict())
    assert all(torch.equal(before[f"lap.{n}"], p) for n, p in lsp.named_parameters()), "same initial weights"

    optimizer = build_optimizer(learner, config.optim)
    learner(make_batch(lay_out(config, assets))).loss.backward()
    assert lap.queries.grad is not None and lap.queries.grad.abs().sum() > 0
    assert all(p.grad is not None for p in lsp.backbone.parameters())
    assert lsp.queries.grad is None
    assert all(p.grad is None for p in lap.backbone.parameters())
    inside = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(lap.queries) in inside and all(id(p) in inside for p in lsp.backbone.parameters())
    assert id(lsp.queries) not in inside and not any(id(p) in inside for p in lap.backbone.parameters())

    optimizer.step()  # no weight decay on the two halves either
    assert torch.equal(lsp.queries, before["lsp.queries"])
    assert all(torch.equal(p, before[f"lap.backbone.{n}"]) for n, p in lap.backbone.named_parameters())


def test_vision_tower_and_encoder_are_frozen() -> None:
    config = small()
    assets = make_assets(config)
    learner = make_learner(config, assets)
    learner(make_batch(lay_out(config, assets))).loss.backward()
    frozen = [n for n, p in learner.named_parameters() if p.grad is None]
    assert any(n.startswith("vla.backbone.vision") for n in frozen) and any(n.startswith("encoder") for n in frozen)
    expected = ("vla.backbone.vision", "encoder", "objective.lap.backbone", "objective.lsp.queries")
    assert all(n.startswith(expected) for n in frozen), frozen


def train_steps(config, assets, laid, steps: int = 4):
    learner = make_learner(config, assets)
    optimizer = build_optimizer(learner, config.optim)
    from jala_ray.training.optim import clip_gradients

    losses = []
    for step in range(steps):
        out = learner(make_batch(laid[step % 3 :]))
        (out.loss / len(laid)).backward()
        clip_gradients(learner, config.optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        learner.objective.after_step()
        losses.append(out.sums["mcp/sum"].item())
    return learner, losses


def test_lambda_zero_is_no_align_bit_for_bit() -> None:
    """With the same rule for the LSP queries (the gradient)."""
    jala = small(objective__align__weight=0.0, objective__updates="gradient")
    plain = small(PRESETS["tiny_no_align"])
    assets = make_assets(jala)
    laid = lay_out(jala, assets)
    one, losses = train_steps(jala, assets, laid)
    other, same = train_steps(plain, assets, laid)
    assert losses == same
    theirs = one.state_dict()
    for name, value in other.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_collapse_is_seen() -> None:
    """z that ignores the second frame gives rho = 0; z that ignores its input altogether has rank 0."""
    config = small()
    assets = make_assets(config)
    learner = make_learner(config, assets).eval()
    batch = make_batch(lay_out(config, assets))
    alive = learner.monitors(batch)
    assert alive["rho"] > 0.05 and alive["effective_rank_z"] > 2
    still = replace(batch, pairs=batch.pairs[:, :1].expand(-1, 2).contiguous())
    assert learner.monitors(still)["rho"] == pytest.approx(0.0, abs=1e-6)
    blind = replace(batch, frames=torch.zeros_like(batch.frames))
    dead = learner.monitors(blind)
    assert dead["effective_rank_z"] < 1.0 and dead["spread_z"] < 1e-5


def test_an_h_that_is_a_constant_is_seen() -> None:
    config = small()
    assets = make_assets(config)
    learner = make_learner(config, assets).eval()
    batch = make_batch(lay_out(config, assets))
    assert learner.monitors(batch)["varying_h"] > 0.1
    features, out, _ = learner.run(batch, still=True)
    layer, at = config.objective.align.layer, batch.pair_at
    rows = torch.ones(len(at), out.hidden[layer].shape[-1]) + 0.01 * torch.randn(len(at), out.hidden[layer].shape[-1])
    out.hidden[layer] = out.hidden[layer].flatten(0, 1).index_copy(0, at, rows).unflatten(0, batch.ids.shape)
    assert 0 < learner.objective.monitors(batch, features, out)["varying_h"] < 0.02
