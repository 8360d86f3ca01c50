"""Alignment's settings: what each changes of loss and gradients, and that the default is what it was (method.md 5)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jala_ray.batch import Batch, rows_at
from jala_ray.config import RunConfig
from jala_ray.models.vla import VLA, Out
from jala_ray.objectives.base import Features, Losses, full, sample_mean
from jala_ray.objectives.jala import Jala
from jala_ray.presets import PRESETS
from jala_ray.training.learner import Learner
from tests.support import MIXED, lay_out, make_assets, make_batch, make_learner, small

LABELLED = [kind.task != "pure_video" and kind.task != "description" for kind in MIXED]
"""Of the mixed samples that align, those with a labelled chunk."""


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
