"""Alignment's settings: what each changes of loss and gradients, and that the default is what it was (method.md 5)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jala_ray.batch import Batch, rows_at
from jala_ray.config import RunConfig
from jala_ray.config.checking import check
from jala_ray.models.vla import VLA, Out
from jala_ray.objectives.base import Features, Losses, full, sample_mean
from jala_ray.objectives.jala import Jala
from jala_ray.presets import PRESETS
from jala_ray.training.learner import Learner
from jala_ray.types import ConfigError
from tests.support import MIXED, U, lay_out, make_assets, make_batch, make_learner, small

LABELLED = [kind.task != "pure_video" and kind.task != "description" for kind in MIXED]
"""Of the mixed samples that align, those with a labelled chunk."""
WHOLLY = torch.tensor(
    [labelled and not kind.unlabelled and U not in kind.states for labelled, kind in zip(LABELLED, MIXED, strict=True)]
)
"""Those of them without an untracked chunk."""
VIDEO = [kind.task == "pure_video" for kind in MIXED]


def setting(name: str = "tiny", **values: object) -> tuple[RunConfig, Learner, Batch]:
    """A learner and a batch of mixed samples."""
    config = small(PRESETS[name], **values)
    assets = make_assets(config)
    return config, make_learner(config, assets), make_batch(lay_out(config, assets))


def gradients(learner: Learner) -> dict[str, Tensor]:
    return {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


def by_alignment(learner: Learner, batch: Batch, chosen: Tensor | None = None) -> dict[str, Tensor]:
    """Gradients of L_align alone, over the chosen samples (S,) or all; those that are not zero."""
    learner.zero_grad(set_to_none=True)
    align = learner.run(batch)[2].terms["align"]
    align[chosen if chosen is not None else slice(None)].sum().backward()
    return {name: grad for name, grad in gradients(learner).items() if grad.any()}


def as_it_was(self: Jala, vla: VLA, batch: Batch, features: Features | None, out: Out) -> Losses:
    """`Jala.loss`'s alignment as it was when it had one reduction, one direction and all clips."""
    losses = as_it_is(self, vla, batch, features, out)
    assert features is not None
    at = batch.pair_at
    h = full(self.compared(rows_at(out.hidden[self.config.align.layer], at)))
    places = rows_at(batch.pair, at), rows_at(batch.hand, at), rows_at(batch.k, at)
    z = full(self.targets(features)[places])
    cosine = self.config.align.distance == "cosine"
    distance = 1 - torch.cosine_similarity(h, z, dim=-1) if cosine else (h - z).abs().mean(dim=-1)
    align, has_align = sample_mean(distance, rows_at(batch.sample, at), len(batch.weight))
    losses.terms["align"], losses.has["align"] = align, has_align
    return losses


as_it_is = Jala.loss


@pytest.mark.parametrize("name", ["tiny", "tiny_change_head", "tiny_ema_teacher"])
def test_the_default_is_what_it_was_to_the_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for loss in (as_it_is, as_it_was):
        monkeypatch.setattr(Jala, "loss", loss)
        _, learner, batch = setting(name)
        output = learner(batch)
        output.loss.backward()
        found.append((output, gradients(learner)))
    (now, ours), (then, theirs) = found
    assert torch.equal(now.loss, then.loss) and now.sums.keys() == then.sums.keys()
    assert all(torch.equal(now.sums[key], then.sums[key]) for key in now.sums) and now.sums["align/count"] > 0
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("clips", ["labelled", "unlabelled"])
def test_whose_alignment_counts(clips: str) -> None:
    """The others' is off, in loss and gradient; theirs, the rows and the codes' loss stay as they are."""
    _, whole, batch = setting()
    _, part, same = setting(objective__align__clips=clips)
    assert all(torch.equal(tensor, same.tensors()[name]) for name, tensor in batch.tensors().items())
    all_of, some_of = whole.run(batch)[2], part.run(same)[2]
    chosen = all_of.has["align"] & (torch.tensor(LABELLED) == (clips == "labelled"))
    assert chosen.any() and (all_of.has["align"] & ~chosen).any()
    assert torch.equal(some_of.has["align"], chosen) and torch.equal(some_of.terms["mcp"], all_of.terms["mcp"])
    assert torch.equal(some_of.terms["align"], all_of.terms["align"].where(chosen, 0.0))
    ours, theirs = by_alignment(part, same), by_alignment(whole, batch, chosen)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-8, rtol=1e-5, msg=name)


def test_a_sum_is_d_times_the_mean() -> None:
    """Over the width alone, in loss and gradient; the codes' loss stays."""
    _, mean, batch = setting()
    _, total, same = setting(objective__align__reduction="sum")
    width = mean.vla.backbone.hidden_size
    one, other = mean.run(batch)[2], total.run(same)[2]
    assert torch.equal(one.has["align"], other.has["align"]) and one.has["align"].any()
    torch.testing.assert_close(other.terms["align"], width * one.terms["align"])
    assert torch.equal(other.terms["mcp"], one.terms["mcp"])
    ours, theirs = by_alignment(total, same), by_alignment(mean, batch)
    assert ours.keys() == theirs.keys() and any(name.startswith("vla.backbone.language") for name in ours)
    for name in ours:
        torch.testing.assert_close(ours[name], width * theirs[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("positions", ["masked", "target", "all"])
def test_what_is_aligned(positions: str) -> None:
    """Untracked chunks throughout; of labelled ones the target's masked positions, all of its positions, or those of every chunk."""
    _, learner, batch = setting(objective__align__positions=positions)
    code = (batch.k >= 0) & torch.isin(batch.sample, torch.tensor(LABELLED).logical_or(torch.tensor(VIDEO)).nonzero())
    tracked, hidden = batch.target >= 0, batch.ids == learner.vla.vocab.mask
    aligned = batch.pair >= 0
    assert aligned[code & ~tracked].all() and not aligned[~code].any()
    chunk = torch.stack([batch.sample, batch.hi, batch.hand], -1)[aligned & tracked]
    chunks_of_a_sample = torch.unique(chunk, dim=0)[:, 0].bincount(minlength=len(MIXED))
    if positions == "all":
        assert aligned[code].all()
    else:
        assert chunks_of_a_sample.tolist() == [int(labelled) for labelled in LABELLED]
        assert bool((aligned & tracked & ~hidden).any()) == (positions == "target")
    pairs = batch.pair[aligned].unique()
    assert batch.pairs is not None and pairs.tolist() == list(range(len(batch.pairs)))
    assert "objective.lap.queries" in by_alignment(learner, batch)


def test_all_positions_need_every_boundary() -> None:
    """Prompts of a continuation, too; a description aligns nothing and needs v_0."""
    config = small(PRESETS["tiny_jala_literal"])
    laid = lay_out(config, make_assets(config))
    for kind, sample in zip(MIXED, laid, strict=True):
        times = [] if kind.task == "description" else list(range(kind.chunks))
        assert sorted(sample.pairs) == times and list(sample.boundaries) == [0, *(time + 1 for time in times)]


def test_a_cosine_has_no_sum() -> None:
    with pytest.raises(ConfigError, match=r"objective\.align\.reduction"):
        check(small(PRESETS["tiny_change"], objective__align__reduction="sum"))


@pytest.mark.parametrize(("updates", "learns"), [("gradient", {"backbone", "queries"}), ("decoupled", {"queries"})])
def test_anchored_z_follows_h_on_labelled_chunks_and_h_follows_z_on_the_others(updates: str, learns: set[str]) -> None:
    """The values are those of both directions; LAP learns of labelled chunks alone, the VLA and LSP of untracked ones alone."""
    _, plain, batch = setting(objective__updates=updates)
    _, learner, same = setting("tiny_anchored", objective__updates=updates)
    one, other = plain.run(batch)[2], learner.run(same)[2]
    assert torch.equal(one.terms["align"], other.terms["align"]) and torch.equal(one.terms["mcp"], other.terms["mcp"])
    labelled = by_alignment(learner, same, WHOLLY)
    assert {name.split(".")[1] for name in labelled} == {"lap"} and {name.split(".")[2] for name in labelled} == learns
    untracked = by_alignment(learner, same, torch.tensor(VIDEO))
    parts = {".".join(name.split(".")[:2]) for name in untracked}
    assert parts == {"vla.backbone", "vla.hand_embedding", "vla.motion_embedding", "objective.lsp"}
    both = by_alignment(plain, batch, WHOLLY)
    for name, grad in labelled.items():
        torch.testing.assert_close(grad, both[name], atol=1e-8, rtol=1e-5, msg=name)


def test_anchored_parts_a_sample_by_its_chunks() -> None:
    """A clip with a labelled hand and an untracked one teaches both sides."""
    _, learner, batch = setting("tiny_anchored")
    found = by_alignment(learner, batch, torch.arange(len(MIXED)) == 8)
    assert {".".join(name.split(".")[:2]) for name in found} >= {"objective.lap", "objective.lsp", "vla.backbone"}


@pytest.mark.parametrize("updates", ["teacher", "fixed"])
def test_anchored_needs_a_lap_that_learns(updates: str) -> None:
    with pytest.raises(ConfigError, match="a LAP that learns by gradient"):
        check(small(PRESETS["tiny_anchored"], objective__updates=updates))
