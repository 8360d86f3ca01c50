"""Alignment with the motion that a teacher reads from pairs of frames."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jala_ray.batch import rows_at
from jala_ray.data.samples.assets import Assets
from jala_ray.models.inverse_dynamics import Teacher
from jala_ray.objectives.aligning import labelled_samples
from jala_ray.objectives.grounded import Grounded
from jala_ray.presets import PRESETS
from jala_ray.training.learner import Learner
from tests.support import lay_out, make_assets, make_batch, make_learner, small


def made(name: str) -> tuple[Learner, Assets]:
    config = small(PRESETS[name])
    assets = make_assets(config)
    return make_learner(config, assets), assets


def batch_of(name: str):
    config = small(PRESETS[name])
    return make_batch(lay_out(config, make_assets(config)), packing=True, pad_multiple=8)


def losses_of(learner: Learner, name: str):
    return learner.run(batch_of(name))[2]


@pytest.mark.parametrize("name", ["tiny_grounded", "tiny_grounded_learned"])
def test_who_learns_from_alignment(name: str) -> None:
    """The language model up to the tapped block and the head; no teacher, no LSP beyond its latents' way into h."""
    learner, _ = made(name)
    losses = losses_of(learner, name)
    losses.terms["align"].sum().backward()
    objective = learner.objective
    assert isinstance(objective, Grounded) and objective.teacher is not None
    learned = {n for n, p in objective.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert any(n.startswith("head.") for n in learned) and any(n.startswith("lsp.") for n in learned)
    assert not any(n.startswith(("teacher.", "reader.", "tokenizer.")) for n in learned)
    blocks = learner.vla.backbone.blocks
    tap = objective.taps[0]
    moved = [any(p.grad is not None and p.grad.abs().max() > 0 for p in block.parameters()) for block in blocks]
    assert moved == [number < tap for number in range(len(blocks))]


def test_a_learned_teacher_learns_from_labels_alone() -> None:
    learner, _ = made("tiny_grounded_learned")
    losses = losses_of(learner, "tiny_grounded_learned")
    losses.terms["teacher"].sum().backward()
    learned = {n for n, p in learner.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert learned and all(n.startswith("objective.reader.") for n in learned)
    batch = batch_of("tiny_grounded_learned")
    assert not (losses.has["teacher"] & ~labelled_samples(batch)).any()


def test_the_learned_teachers_error_is_that_of_the_motion_its_codes_say() -> None:
    learner, assets = made("tiny_grounded_learned")
    config = small(PRESETS["tiny_grounded_learned"])
    batch, objective = make_batch(lay_out(config, assets), packing=True, pad_multiple=8), learner.objective
    assert isinstance(objective, Grounded) and objective.teacher is not None
    features, _, losses = learner.run(batch)
    assert features is not None
    motion, vocab, tokens = objective.motion(features), assets.spec.vocab, assets.spec.vocab.chunk_tokens
    found: dict[int, list[torch.Tensor]] = {}
    at = batch.pair_at
    columns = [rows_at(column, at).tolist() for column in (batch.pair, batch.hand, batch.k)]
    chunks = {(row, hand): place - k for place, row, hand, k in zip(at.tolist(), *columns, strict=True)}
    slots = torch.tensor(vocab.token_slots) * vocab.codes
    for (row, hand), begin in chunks.items():
        codes = batch.target.flatten()[begin : begin + tokens]
        if (codes >= 0).all():
            true = objective.teacher.motion(assets.tokenizer.decode((codes + slots)[None]))[0]
            owner = int(batch.sample.flatten()[begin])
            found.setdefault(owner, []).append((motion[row, hand] - true).square().sum())
    assert found
    for sample, value in enumerate(losses.terms["teacher"]):
        expected = torch.stack(found[sample]).mean() if sample in found else torch.zeros(())
        torch.testing.assert_close(value, expected)


def test_the_control_differs_in_unlabelled_clips_alone() -> None:
    batch = batch_of("tiny_grounded")
    own, control = (losses_of(made(name)[0], name) for name in ("tiny_grounded", "tiny_grounded_labelled_only"))
    labelled = labelled_samples(batch)
    assert (own.has["align"] & ~labelled).any() and not (control.has["align"] & ~labelled).any()
    torch.testing.assert_close(own.terms["align"] * labelled, control.terms["align"])
    torch.testing.assert_close(own.terms["mcp"], control.terms["mcp"])


def test_one_target_for_a_hand_and_k_whatever_the_batch() -> None:
    """z is the pair's alone, differs between hands and places, and a second model has the same."""
    (one, _), (other, _) = made("tiny_grounded"), made("tiny_grounded")
    features, _, _ = one.run(batch_of("tiny_grounded"))
    assert features is not None
    z = one.objective.targets(features)
    torch.testing.assert_close(z, other.objective.targets(features))
    alone = replace(features, pairs=features.pairs[1:2])
    torch.testing.assert_close(one.objective.targets(alone), z[1:2], atol=1e-4, rtol=1e-4)
    assert (z[:, 0] - z[:, 1]).abs().max() > 1e-3 and (z[:, :, 0] - z[:, :, 1]).abs().max() > 1e-3


def test_a_teacher_is_stored_with_the_assets(tmp_path) -> None:
    _, assets = made("tiny_grounded")
    assets.save(tmp_path)
    again = Assets.load(tmp_path).teacher
    assert isinstance(again, Teacher) and assets.teacher is not None
    assert again.report == assets.teacher.report and again.sight == assets.teacher.sight
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in assets.teacher.tensors.items())
