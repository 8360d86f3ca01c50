"""The ablations: who learns, who stays, and what each has in common with JALA (method.md 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from jala_ray.config import RunConfig
from jala_ray.config.checking import check
from jala_ray.data.samples.assets import Assets
from jala_ray.parsing import override
from jala_ray.presets import PRESETS
from jala_ray.training.learner import Learner
from jala_ray.training.optim import build_optimizer
from jala_ray.types import ConfigError
from tests.support import (
    ABLATIONS,
    MIXED,
    A,
    Kind,
    L,
    MemorySource,
    U,
    lay_out,
    make_assets,
    make_batch,
    make_builder,
    make_learner,
    same_batch,
    small,
)

PARTS = {
    "pure video": [Kind("pure_video", (U, U), 2), Kind("pure_video", (A, U), 1)],
    "labelled": [Kind("generation", (L, L), 2), Kind("continuation", (L, A), 2)],
    "description": [Kind("description", (A, L), 2)],
    "nothing readable": [],
}
"""What the batch of one rank may consist of."""


def setting(name: str, **values: object) -> tuple[RunConfig, Assets]:
    config = small(PRESETS[name], **values)
    return config, make_assets(config)


def two_steps(config: RunConfig, assets: Assets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights before and after two optimizer steps on mixed samples."""
    learner = make_learner(config, assets)
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    optimizer, laid = build_optimizer(learner, config.optim), lay_out(config, assets)
    for _ in range(2):
        (learner(make_batch(laid)).loss / len(laid)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        learner.objective.after_step()
    return before, learner.state_dict()


def gradients(learner: Learner) -> dict[str, Tensor]:
    return {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "moving", "still"),
    [
        (
            "tiny_no_decoupling",
            ["lap.backbone", "lap.queries", "lsp.backbone", "lsp.queries", "vla.motion_head"],
            ["encoder", "vla.backbone.vision"],
        ),
        (
            "tiny_ema_teacher",
            ["lap.backbone", "lap.queries", "lsp.backbone", "lsp.queries", "vla.motion_head"],
            ["encoder", "vla.backbone.vision"],
        ),
        ("tiny_change", ["lap.backbone", "lap.queries", "lsp.backbone", "lsp.queries", "vla.motion_head"], ["encoder"]),
        ("tiny_change_fixed", ["lsp.backbone", "lsp.queries", "vla.motion_head"], ["lap", "encoder"]),
        ("tiny_change_head", ["head", "lsp.backbone", "lsp.queries"], ["lap", "encoder"]),
        ("tiny_no_lsp", ["lap.queries", "vla.motion_head", "vla.backbone.language"], ["lap.backbone", "encoder"]),
        (
            "tiny_align_only",
            ["lap.queries", "lap.backbone", "lsp.backbone", "lsp.queries", "vla.backbone.language"],
            ["vla.motion_head", "encoder"],
        ),
        ("tiny_lapa_actions", ["actions.inverse", "actions.codebooks", "forward_model"], ["vla", "encoder"]),
        ("tiny_lapa_codes", ["head", "vla.backbone.language"], ["actions", "vla.motion_head", "encoder"]),
    ],
)
def test_what_two_steps_move(name: str, moving: Sequence[str], still: Sequence[str]) -> None:
    """Weight decay included: what stands still is in no optimizer."""
    config, assets = setting(name)
    before, after = two_steps(config, assets)

    def within(parts: Sequence[str]) -> list[str]:
        paths = [p if p.startswith(("vla", "encoder")) else f"objective.{p}" for p in parts]
        found = {path: [n for n in before if n == path or n.startswith(f"{path}.")] for path in paths}
        assert all(found.values()), found
        return [n for names in found.values() for n in names]

    assert [n for n in within(moving) if before[n].ndim >= 2 and torch.equal(before[n], after[n])] == []
    assert [n for n in within(still) if not torch.equal(before[n], after[n])] == []


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_rank_gives_every_parameter_a_gradient(name: str, part: str) -> None:
    """Whatever its rows are; else DDP would wait for the missing ones. Frozen parameters get none."""
    config, assets = setting(name)
    learner = make_learner(config, assets)
    if PARTS[part]:
        batch = make_batch(lay_out(config, assets, PARTS[part]))
    else:
        batch = make_builder(config, MemorySource(MIXED, assets, frozenset({0})), 1).build(0, 0, 1).micro[0]
        assert not batch.weight.any()
    learner(batch).loss.backward()
    for parameter_name, parameter in learner.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
    assert all(torch.isfinite(grad).all() for grad in gradients(learner).values())


@pytest.mark.parametrize("name", ABLATIONS)
def test_all_begin_with_jala_s_weights(name: str) -> None:
    """One seed, one backbone; and perceivers of the same name begin alike."""
    jala = make_learner(*setting("tiny")).state_dict()
    own = make_learner(*setting(name)).state_dict()
    assert {n for n in own if n.startswith(("vla.", "encoder."))} == {
        n for n in jala if n.startswith(("vla.", "encoder."))
    }
    shared = own.keys() & jala.keys()
    assert [n for n in shared if not torch.equal(own[n], jala[n])] == []
    if not name.startswith("tiny_lapa"):
        mine = tuple(f"objective.{part}." for part in ("head", "pair_reader", "teacher", "reader", "tokenizer"))
        assert {n for n in own.keys() - jala.keys() if not n.startswith(mine)} == set()


def test_without_decoupling_the_ema_does_nothing() -> None:
    """All four halves learn by gradient, and `after_step` leaves every bit."""
    config, assets = setting("tiny_no_decoupling")
    learner = make_learner(config, assets)
    lap, lsp = learner.objective.lap, learner.objective.lsp
    for one, other in zip(lap.parameters(), lsp.parameters(), strict=True):
        assert torch.equal(one, other), "same initial weights"
    learner(make_batch(lay_out(config, assets))).loss.backward()
    for half in (lap.backbone, lsp.backbone):
        assert sum(float(p.grad.abs().sum()) for p in half.parameters()) > 0
    assert lap.queries.grad.abs().sum() > 0 and lsp.queries.grad.abs().sum() > 0
    build_optimizer(learner, config.optim).step()  # LAP and LSP are apart now
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    learner.objective.after_step()
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.state_dict().items())


@pytest.mark.parametrize("name", ["tiny", "tiny_change", "tiny_change_head"])
def test_alignment_is_what_its_settings_say(name: str) -> None:
    """eq. 3 for the base; 1 - cos(h, z(pair) - z(first frame twice)) for `change`, of a projection of h with a head."""
    config, assets = setting(name)
    learner = make_learner(config, assets)
    batch = make_batch(lay_out(config, assets))
    features, out, losses = learner.run(batch)
    lap, at = learner.objective.lap, batch.pair >= 0
    still = features.pairs[:, :1].expand(-1, 2, -1, -1)
    z = lap(features.pairs) - (lap(still) if name != "tiny" else 0)
    expected = {}
    for row, column in at.nonzero().tolist():
        where = (row, column)
        h = out.hidden[config.objective.align.layer][where]
        if name == "tiny_change_head":
            first, _, last = learner.objective.head
            h = torch.nn.functional.gelu(h @ first.weight.T + first.bias) @ last.weight.T + last.bias
        target = z[batch.pair[where], batch.hand[where], batch.k[where]]
        cosine, mean = (h @ target) / (h.norm() * target.norm()), (h - target).abs().sum() / len(h)
        expected.setdefault(batch.sample[where].item(), []).append(mean if name == "tiny" else 1 - cosine)
    assert expected
    for sample, distances in expected.items():
        torch.testing.assert_close(losses.terms["align"][sample], torch.stack(distances).mean(), rtol=1e-4, atol=1e-5)


def test_a_pair_that_stands_still_has_no_change() -> None:
    config, assets = setting("tiny_change")
    learner = make_learner(config, assets)
    batch = make_batch(lay_out(config, assets))
    still = replace(batch, pairs=batch.pairs[:, :1].expand(-1, 2).contiguous())
    _, _, losses = learner.run(still)
    has = losses.has["align"]
    assert has.any() and torch.equal(losses.terms["align"][has], torch.ones(int(has.sum())))


def test_a_teacher_only_follows() -> None:
    """No gradient of alignment reaches LAP, LSP learns whole, and after each step LAP is a share 1 - alpha nearer to it."""
    config, assets = setting("tiny_ema_teacher")
    learner = make_learner(config, assets)
    lap, lsp = learner.objective.lap, learner.objective.lsp
    learner(make_batch(lay_out(config, assets))).loss.backward()
    assert all(p.grad is None for p in lap.parameters())
    assert all(p.grad is not None for p in lsp.parameters()) and lsp.queries.grad.abs().sum() > 0
    build_optimizer(learner, config.optim).step()
    start, goal = ([p.clone() for p in one.parameters()] for one in (lap, lsp))
    learner.objective.after_step()
    alpha = config.objective.ema.alpha
    for now, was, at in zip(lap.parameters(), start, goal, strict=True):
        torch.testing.assert_close(now, alpha * was + (1 - alpha) * at)
    assert all(torch.equal(p, at) for p, at in zip(lsp.parameters(), goal, strict=True))


def test_a_teacher_must_have_whom_to_follow() -> None:
    with pytest.raises(ConfigError, match="an LSP that LAP can follow"):
        check(
            override(
                PRESETS["tiny_ema_teacher"], {"objective.state": "none", "data.manifest": "m", "motion_tokenizer": "t"}
            )
        )


def test_without_lsp_masks_are_plain() -> None:
    config, assets = setting("tiny_no_lsp")
    learner = make_learner(config, assets)
    laid = lay_out(config, assets)
    batch = make_batch(laid)
    assert learner.objective.lsp is None and not any(".lsp." in name for name in learner.state_dict())
    assert not len(batch.state_at)
    assert learner.objective.extra(batch, learner.features(batch)) is None
    learner.objective.after_step()  # nothing to follow
    jala_config, jala_assets = setting("tiny")
    jala = make_batch(lay_out(jala_config, jala_assets))
    for column in ("ids", "pair", "scored_at", "target", "pairs", "frames"):
        assert torch.equal(getattr(batch, column), getattr(jala, column)), column
    assert learner.monitors(batch)["rho"] > 0


def test_without_any_perceiver_no_frames_are_read() -> None:
    """`no_align` without LSP: masked prediction from [MASK] alone."""
    config, assets = setting("tiny_no_align", objective__state="none")
    laid = lay_out(config, assets)
    assert all(set(sample.pictures) == {"image"} for sample in laid)
    learner = make_learner(config, assets)
    out = learner(make_batch(laid))
    assert out.sums["mcp/sum"] > 0 and learner.features(make_batch(laid)) is None


def test_alignment_alone_is_jala_without_its_code_loss() -> None:
    """The gradient of JALA's other terms, up to rounding, on the same masks."""
    config, assets = setting("tiny_align_only")
    jala_config, _ = setting("tiny")
    batch, same = (make_batch(lay_out(c, assets)) for c in (config, jala_config))
    assert set(batch.read_at.tolist()) < set(same.read_at.tolist()), "no code is read"
    same_batch(replace(batch, read_at=same.read_at, deep=same.deep), same)

    alone, jala = make_learner(config, assets), make_learner(jala_config, assets)
    output = alone(batch)
    output.loss.backward()
    assert not any(name.startswith("mcp") for name in output.sums)
    _, _, losses = jala.run(same)
    weights = alone.objective.term_weights()
    assert weights == {"text": 1.0, "align": config.objective.align.weight}
    loss = sum(weights[name] * (same.weight * losses.terms[name]).sum() for name in losses.terms if name in weights)
    torch.as_tensor(loss + sum((p.flatten()[:1] * 0.0).sum() for p in touched(jala))).backward()
    ours, theirs = gradients(alone), gradients(jala)
    assert theirs.keys() - ours.keys() == {"vla.motion_head.weight"}
    assert not theirs["vla.motion_head.weight"].any()
    for name in ours:  # the last block runs at fewer places, so sums are rounded otherwise
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-7, rtol=1e-5, msg=name)


def test_alignment_alone_reads_no_target() -> None:
    """Other codes behind the masks change neither loss nor gradient."""
    config, assets = setting("tiny_align_only")
    batch = make_batch(lay_out(config, assets))
    other = replace(batch, target=torch.where(batch.target >= 0, (batch.target + 1) % 16, -1))
    found = []
    for columns in (batch, other):
        learner = make_learner(config, assets)
        loss = learner(columns).loss
        loss.backward()
        found.append((loss.detach(), gradients(learner)))
    (loss, ours), (same, theirs) = found
    assert torch.equal(loss, same) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def touched(learner: Learner) -> list[torch.nn.Parameter]:
    return learner.vla.own_parameters() + [p for p in learner.objective.parameters() if p.requires_grad]
