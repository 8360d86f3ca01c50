"""A second pass that sees the pair, and who learns from which of the two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from jala_ray.batch import Batch, rows_at
from jala_ray.config.checking import check
from jala_ray.models.perceiver import Perceiver
from jala_ray.objectives.aligning import labelled_samples
from jala_ray.objectives.monitors import by_pair
from jala_ray.objectives.posterior import Posterior
from jala_ray.presets import PRESETS
from jala_ray.training.learner import Learner
from jala_ray.types import ConfigError
from tests.support import MIXED, lay_out, make_assets, make_batch, make_learner, small

NAME = "tiny_posterior"


def made(name: str = NAME, **values: Any) -> tuple[Learner, Batch, Posterior]:
    """A learner of mixed samples in one row, and its objective."""
    config = small(PRESETS[name], data__labels="all", **values)
    assets = make_assets(config)
    learner = make_learner(config, assets)
    assert isinstance(learner.objective, Posterior)
    return learner, make_batch(lay_out(config, assets), packing=True, pad_multiple=8), learner.objective


def moved(learner: Learner, batch: Batch, term: str) -> set[str]:
    """Names of parameters with a gradient of this term alone that is not zero."""
    learner.zero_grad(set_to_none=True)
    learner.run(batch)[2].terms[term].sum().backward()
    return {name for name, p in learner.named_parameters() if p.grad is not None and p.grad.any()}


def parts(names: set[str]) -> set[str]:
    return {".".join(name.split(".")[:2]) for name in names}


def blocks(learner: Learner, names: set[str]) -> list[bool]:
    """Of each language block, whether it has a gradient."""
    of = {id(p): name in names for name, p in learner.named_parameters()}
    return [any(of[id(p)] for p in block.parameters()) for block in learner.vla.backbone.blocks]


# --- who learns from what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["none", "mlp"])
def test_alignment_teaches_the_first_pass_alone(head: str) -> None:
    """No perceiver of pairs; its gradients are those of targets that are numbers, so nothing comes through the second pass."""
    learner, batch, objective = made(objective__align__head=head)
    found = moved(learner, batch, "align")
    expected = {"vla.backbone", "vla.hand_embedding", "vla.motion_embedding", "objective.lsp"}
    assert parts(found) == expected | ({"objective.head"} if head == "mlp" else set())
    tap = objective.taps[0]
    assert blocks(learner, found) == [number < tap for number in range(learner.vla.backbone.n_layers)]
    grads = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    learner.zero_grad(set_to_none=True)
    features, out, _ = learner.run(batch)
    assert out.again is not None
    out.again.hidden = {layer: h.detach() for layer, h in out.again.hidden.items()}
    objective.loss(learner.vla, batch, features, out).terms["align"].sum().backward()
    for name, p in learner.named_parameters():
        assert (p.grad is None) == (name not in grads) or not grads[name].any(), name
        if p.grad is not None:
            assert torch.equal(p.grad, grads[name]), name


def test_the_posteriors_codes_alone_teach_the_perceiver_of_pairs() -> None:
    """All of it, and the VLA whole; text and the prior's codes know nothing of it."""
    learner, batch, objective = made()
    found = {term: moved(learner, batch, term) for term in ("mcp", "text", "posterior", "align")}
    reader = {f"objective.pair_reader.{name}" for name, _ in objective.pair_reader.named_parameters()}
    assert reader <= found["posterior"] and all(not reader & found[term] for term in ("mcp", "text", "align"))
    assert "vla.motion_head.weight" in found["posterior"] & found["mcp"] and all(blocks(learner, found["posterior"]))
    assert not any(name.startswith("objective.") for name in found["text"])


def test_unlabelled_video_teaches_no_codes_and_is_aligned() -> None:
    learner, batch, _ = made()
    losses, labelled = learner.run(batch)[2], labelled_samples(batch)
    assert torch.equal(losses.has["posterior"], losses.has["mcp"])
    assert (losses.has["align"] & ~labelled).any() and not (losses.has["posterior"] & ~labelled).any()
    tasks = torch.tensor([kind.task == "description" for kind in MIXED])
    assert torch.equal(losses.has["text"], tasks) and not (losses.has["align"] & tasks).any()


def test_the_control_differs_in_unlabelled_clips_alone() -> None:
    (own, batch, _), (control, same, _) = made(), made("tiny_posterior_labelled_only")
    assert all(torch.equal(tensor, same.tensors()[name]) for name, tensor in batch.tensors().items())
    ours, theirs, labelled = own.run(batch)[2], control.run(batch)[2], labelled_samples(batch)
    assert torch.equal(theirs.has["align"], ours.has["align"] & labelled) and (ours.has["align"] & ~labelled).any()
    assert torch.equal(ours.terms["align"] * labelled, theirs.terms["align"])
    for term in ("mcp", "text", "posterior"):
        assert torch.equal(ours.terms[term], theirs.terms[term]), term


# --- what the second pass sees -------------------------------------------------------------------------------------------


def of_first_frames(batch: Batch) -> Batch:
    """Every pair is its clip's (v_0, v_0)."""
    assert batch.first is not None and batch.pairs is not None
    at, owner = batch.pair_at, torch.empty(len(batch.pairs), dtype=torch.int64)
    owner[rows_at(batch.pair, at)] = rows_at(batch.sample, at)
    return replace(batch, pairs=batch.first[owner])


def test_with_the_priors_latents_both_passes_are_one() -> None:
    """Every place, every hidden state: the pair's latents stand where LSP's stood, and nothing else differs."""
    learner, batch, objective = made(objective__perceiver__reads="frames")
    assert objective.lsp is not None
    objective.pair_reader.load_state_dict(objective.lsp.state_dict())
    _, out, losses = learner.run(of_first_frames(batch))
    assert out.again is not None
    for layer, h in out.hidden.items():
        torch.testing.assert_close(out.again.hidden[layer], h, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses.terms["posterior"], losses.terms["mcp"], atol=1e-5, rtol=1e-5)
    assert losses.terms["align"].abs().max() < 1e-5
    _, apart, losses = learner.run(batch)
    assert apart.again is not None and losses.terms["align"].max() > 1e-4


@pytest.mark.parametrize("state", ["mask", "prefix", "none"])
@pytest.mark.parametrize("positions", ["masked", "target", "all"])
def test_where_the_pairs_latents_are(state: str, positions: str) -> None:
    """At masked places of chunks with a pair, by their own hand and k; all others keep what the prior has."""
    learner, batch, objective = made(objective__state=state, objective__align__positions=positions)
    features = learner.features(batch)
    assert features is not None
    prior = objective.extra(batch, features)
    found = objective.informed(learner.vla, batch, features, prior)
    latents = objective.pair_reader(features.pairs)
    expected = torch.zeros_like(found) if prior is None else prior.clone()
    places = [(b, t) for b, t in (batch.pair >= 0).nonzero().tolist() if batch.ids[b, t] == learner.vla.vocab.mask]
    for b, t in places:
        expected[b, t] = latents[batch.pair[b, t], batch.hand[b, t], batch.k[b, t]]
    assert places and torch.equal(found, expected)
    if positions != "masked":
        assert len(places) < int((batch.pair >= 0).sum())


def test_a_second_pass_sees_pictures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, batch, _ = made()
    seen: list[Tensor] = []
    look = learner.vla.backbone.encode_image

    def counting(images: Tensor) -> Tensor:
        seen.append(images)
        return look(images)

    monkeypatch.setattr(learner.vla.backbone, "encode_image", counting)
    learner(batch).loss.backward()
    assert len(seen) == 1


def test_a_batch_without_pairs() -> None:
    """Of descriptions alone: nothing aligns, and all that learns has a gradient for other ranks to add to."""
    config = small(PRESETS[NAME])
    assets = make_assets(config)
    learner = make_learner(config, assets)
    batch = make_batch(lay_out(config, assets, [kind for kind in MIXED if kind.task == "description"]))
    output = learner(batch)
    output.loss.backward()
    assert output.sums["align/count"] == 0 and output.sums["text/count"] > 0
    assert all(p.grad is not None for p in learner.parameters() if p.requires_grad)


def test_change_is_for_the_perceiver_of_pairs() -> None:
    """In the preset, where the encoder tells it; LSP reads frames, as the checkpoint of any other objective has it."""
    objective = made()[2]
    assert objective.lsp is not None
    assert objective.pair_reader.backbone.frame_embedding is None and objective.lsp.backbone.frame_embedding is not None
    plain = make_learner(small(PRESETS["tiny_no_align"])).objective
    assert {n for n in plain.state_dict()} == {n for n in objective.state_dict() if n.startswith("lsp.")}
    assert isinstance(made(objective__perceiver__reads="frames")[2].pair_reader, Perceiver)
    with pytest.raises(ConfigError, match=r"model\.encoder\.kind: got 'vjepa2', expected dinov3"):
        check(small(PRESETS[NAME], model__encoder__kind="vjepa2"))


@pytest.mark.parametrize(("name", "value"), [("direction", "anchored"), ("target", "change")])
def test_targets_stand_still(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"objective\.align\.{name}.*second pass"):
        check(small(PRESETS[NAME], **{f"objective__align__{name}": value}))


# --- monitors -----------------------------------------------------------------------------------------------------------


def test_monitors_compare_the_two_passes() -> None:
    """Matched above shuffled where h is its own target; a perceiver that sees no change has rho 0."""
    learner, batch, objective = made()
    found = learner.monitors(batch)
    assert {"rho", "cos_matched", "cos_shuffled", "varying_h", "effective_rank_z"} <= found.keys()
    assert found["rho"] > 0.05 and all(torch.tensor(value).isfinite() for value in found.values())
    assert batch.pairs is not None
    still = replace(batch, pairs=batch.pairs[:, :1].expand(-1, 2).contiguous())
    assert learner.monitors(still)["rho"] == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        features, out, _ = learner.run(batch, still=True)
        assert out.again is not None
        out.again.hidden = out.hidden
        same = objective.monitors(batch, features, out)
    assert same["cos_matched"] == pytest.approx(1.0, abs=1e-5) and same["cos_shuffled"] < 0.5


def test_targets_by_pair_are_those_of_their_places() -> None:
    learner, batch, objective = made()
    features, at = learner.features(batch), batch.pair_at
    assert features is not None
    values = torch.randn(len(at), 5)
    pairs, tokens = len(features.pairs), len(objective.pair_reader.queries)
    table = by_pair(values, batch, (pairs, 2, tokens))
    row, hand, k = (rows_at(column, at) for column in (batch.pair, batch.hand, batch.k))
    assert torch.equal(table[row, hand, k], values) and table.isfinite().all()
    there = torch.zeros(pairs, 2, tokens, dtype=torch.bool)
    there[row, hand, k] = True
    some = next((c, h) for c in range(pairs) for h in range(2) if 0 < there[c, h].sum() < tokens)
    own = values[(row == some[0]) & (hand == some[1])].mean(0)
    torch.testing.assert_close(table[some][~there[some]], own.expand(int((~there[some]).sum()), -1))
