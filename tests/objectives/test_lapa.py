"""LAPA-dagger: codes learned by reconstruction, then predicted (method.md 9)."""

from __future__ import annotations

import itertools
import math
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from jala_ray.batch import Batch
from jala_ray.config import LapaActionsConfig, LatentActionConfig, PerceiverConfig, RunConfig
from jala_ray.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from jala_ray.objectives.base import Features
from jala_ray.objectives.lapa import Codebooks, LapaActions, perplexity
from jala_ray.presets import PRESETS
from jala_ray.training import history
from jala_ray.training.optim import build_optimizer
from jala_ray.training.trainer import train
from jala_ray.types import ConfigError
from tests.support import (
    MIXED,
    A,
    Kind,
    L,
    U,
    lay_out,
    make_assets,
    make_batch,
    make_learner,
    same_batch,
    small,
    void_batch,
)
from tests.training.run import make_run

MEAN, STD = (torch.tensor(channels)[:, None, None] for channels in (IMAGENET_MEAN, IMAGENET_STD))
SIZES = LatentActionConfig(tokens=2, codes=4, width=8)


def run_config(root: Path, name: str = "run", **values: object) -> RunConfig:
    base: dict[str, object] = {"name": name, "storage__root": str(root), "train__steps": 4, "train__batch": 4}
    base |= {f"train__{event}_every": 2 for event in ("log", "checkpoint", "validate", "monitor")}
    base |= {"train__micro_batch": 2, "log__tensorboard": False}
    return small(PRESETS["tiny_lapa_actions"], **(base | values))


# --- codebooks -------------------------------------------------------------------------------------------------------


def books() -> Codebooks:
    torch.manual_seed(3)
    return Codebooks(SIZES.tokens, SIZES.codes, SIZES.width, SIZES.decay)


def test_the_nearest_code_of_each_book() -> None:
    book = books()
    codes = torch.tensor([[0, 3], [2, 2], [1, 0]])
    z = book.look_up(codes)
    assert z.shape == (3, 2, 8)
    for row, chosen in enumerate(codes.tolist()):
        for token, code in enumerate(chosen):
            assert torch.equal(z[row, token], book.vectors[token, code])
    assert torch.equal(book(z + 0.01 * torch.randn_like(z)), codes)
    assert book(z[:0]).shape == (0, 2)


def test_vectors_become_the_means_of_what_falls_to_them() -> None:
    book = books()
    codes = torch.arange(80)[:, None].expand(-1, 2) % SIZES.codes
    z = book.look_up(codes) + 0.1 * torch.randn(80, 2, 8)
    assert torch.equal(book(z), codes)
    book.meet(z, codes)
    assert torch.equal(book.vectors, books().vectors), "nothing changes within a step"
    book.update()
    for token in range(SIZES.tokens):
        for code in range(SIZES.codes):
            expected = z[codes[:, token] == code, token].mean(0)
            torch.testing.assert_close(book.vectors[token, code], expected, atol=1e-5, rtol=1e-5)
    assert not book.met.any() and not book.met_total.any() and not book.worst.any()


def test_a_rare_code_is_replaced_by_the_worst_fit() -> None:
    book = books()
    near = book.vectors[:, :3].transpose(0, 1).repeat(20, 1, 1)  # codes 0, 1, 2; nothing falls to 3
    far = 1.1 * book.vectors[None, :, 0]
    z = torch.cat([near, far])
    codes = book(z)
    assert codes.max() == 2
    book.meet(z, codes)
    book.update()
    assert torch.equal(book.vectors[:, 3], far[0])
    torch.testing.assert_close(book.usage[:, 3], book.usage[:, :3].sum(-1) / 4)
    assert (book(far) == 3).all()
    book.meet(z, book(z))
    book.update()
    torch.testing.assert_close(book.vectors[:, 3], far[0], msg="it has latents of its own and stays")


def test_micro_batches_and_empty_ones_add_up() -> None:
    z = torch.randn(30, 2, 8)
    whole, parts = books(), books()
    whole.meet(z, whole(z))
    for part in (z[:7], z[7:7], z[7:]):
        parts.meet(part, parts(part))
    whole.update()
    parts.update()
    for (name, one), (_, other) in zip(whole.state_dict().items(), parts.state_dict().items(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    whole.update()  # a step without pairs
    torch.testing.assert_close(whole.vectors, parts.vectors)


def test_perplexity() -> None:
    assert perplexity(torch.tensor([[0, 0], [1, 0], [2, 0], [3, 0]]), 4) == pytest.approx((4 + 1) / 2)


# --- first stage -----------------------------------------------------------------------------------------------------


def toy(rows: int, seed: int) -> tuple[Batch, Features]:
    """Pairs that one of three actions leads through: the same change of every patch of a random first frame, features and pixels."""
    fixed = torch.Generator().manual_seed(1)
    actions = 2.0 * torch.randn(3, 1, 12, generator=fixed)
    drawn = torch.randint(128, (3, 3, 8, 8), generator=fixed, dtype=torch.uint8)
    draw = torch.Generator().manual_seed(seed)
    first = torch.randn(rows, 4, 12, generator=draw)
    action = torch.randint(3, (rows,), generator=draw)
    pairs = torch.stack([first, first + actions[action]], 1)
    shown = torch.randint(64, (rows, 3, 16, 16), generator=draw, dtype=torch.uint8)
    frames = torch.stack([shown, shown + drawn[action].repeat(1, 1, 2, 2)], 1).flatten(0, 1)
    index = torch.arange(rows)[None]
    seen = {"frames": frames, "pairs": torch.arange(2 * rows).view(-1, 2)}
    return void_batch(1, rows, rows, pair=index, sample=index, pair_at=index[0], **seen), Features(pairs[:, :0], pairs)


@pytest.mark.parametrize("reconstruct", ["features", "pixels"])
def test_codes_come_to_carry_the_action(reconstruct: Literal["features", "pixels"]) -> None:
    """Reconstruction beats copying by far, other codes spoil it, and the codebooks don't collapse."""
    torch.manual_seed(0)
    sizes = PerceiverConfig(width=32, layers=1, heads=2)
    config = LapaActionsConfig(actions=SIZES, perceiver=sizes, reconstruct=reconstruct)
    objective = LapaActions(config, nn.Module(), 12, (2, 2))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    weights = objective.term_weights()
    for step in range(200):
        batch, features = toy(32, step)
        losses = objective.loss(None, batch, features, None)  # type: ignore[arg-type]
        sum(weights[name] * term.mean() for name, term in losses.terms.items()).backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step()
    objective.eval()
    figures = objective.monitors(*toy(64, 10_000), None)  # type: ignore[arg-type]
    assert figures["copy_ratio"] < 0.3, figures
    assert figures["swap_ratio"] > 2.0, figures
    assert figures["code_perplexity"] > 1.7, figures


def test_a_pair_counts_once() -> None:
    """Two hands of one chunk are aligned with one pair: the sample's loss is the mean over its pairs."""
    config = small(PRESETS["tiny_lapa_actions"])
    assets = make_assets(config)
    learner = make_learner(config, assets).eval()
    kinds = [Kind("pure_video", (U, U), 3), Kind("description", (A, L), 2)]
    batch = make_batch(lay_out(config, assets, kinds))
    features, _, losses = learner.run(batch)
    assert features is not None and len(features.pairs) == 3
    pairs = torch.nn.functional.layer_norm(features.pairs, (16,))
    error, commitment = learner.objective._errors(pairs, pairs)
    assert losses.terms["reconstruction"].tolist() == pytest.approx([error.mean().item(), 0.0])
    assert losses.terms["commitment"].tolist() == pytest.approx([commitment.mean().item(), 0.0])
    assert losses.has["reconstruction"].tolist() == [True, False]


def test_pixels_are_reconstructed_patch_by_patch() -> None:
    """The error is that of v_{t+delta}'s pixels, 8 x 8 a patch, each patch normalised, from v_t's and what is added."""
    config = small(PRESETS["tiny_lapa_actions_pixels"])
    assets = make_assets(config)
    learner = make_learner(config, assets).eval()
    batch = make_batch(lay_out(config, assets, [Kind("pure_video", (A, U), 1)]))
    features, _, losses = learner.run(batch)
    assert features is not None and batch.frames is not None and batch.pairs is not None and len(batch.pairs) == 1

    def patches(frame: torch.Tensor) -> torch.Tensor:
        rows = []
        for top, left in itertools.product((0, 16), (0, 16)):
            patch = (frame[:, top : top + 16, left : left + 16].float() / 255 - MEAN) / STD
            pixels = patch.unfold(1, 2, 2).unfold(2, 2, 2).mean((-2, -1)).flatten()
            rows.append((pixels - pixels.mean()) / (pixels.var() + 0.01).sqrt())
        return torch.stack(rows)

    objective = learner.objective
    seen = torch.nn.functional.layer_norm(features.pairs, (16,))
    vectors = objective.actions.codebooks.look_up(objective.actions(seen))
    first, second = (patches(batch.frames[row]) for row in batch.pairs[0].tolist())
    added = objective.forward_model(seen[:, 0], vectors, torch.zeros(1, 4, 192))[0]
    expected = (first + added - second).square().mean()
    torch.testing.assert_close(losses.terms["reconstruction"], expected[None], rtol=1e-4, atol=1e-5)
    assert learner.objective.columns == ("pairs", "frames")


def test_features_are_reconstructed_as_they_were() -> None:
    """The default, to the bit: v_t's features and what the forward model adds, against v_{t+delta}'s."""
    config = small(PRESETS["tiny_lapa_actions"])
    assets = make_assets(config)
    learner, batch = make_learner(config, assets).eval(), make_batch(lay_out(config, assets))
    features, _, losses = learner.run(batch)
    assert features is not None and learner.objective.columns == ("pairs",)
    objective, pairs = learner.objective, torch.nn.functional.layer_norm(features.pairs, (16,))
    z = objective.actions.latents(pairs)
    straight = z + (objective.actions.codebooks.look_up(objective.actions.codebooks(z)) - z).detach()
    model = objective.forward_model
    patches, codes = model.project(pairs[:, 0]) + model.positions, model.read(straight) + model.code_embedding
    for layer in model.layers:
        patches = layer(patches, codes)
    error = (pairs[:, 0] + model.out(model.norm(patches)) - pairs[:, 1]).square().mean((1, 2))
    owner = torch.tensor([batch.sample[batch.pair == pair][0] for pair in range(len(pairs))])
    expected = torch.zeros(len(MIXED)).index_add(0, owner, error) / owner.bincount(minlength=len(MIXED)).clamp(min=1)
    assert torch.equal(losses.terms["reconstruction"], expected)


def test_who_learns_from_pixels() -> None:
    """The inverse and the forward model, nobody else."""
    config = small(PRESETS["tiny_lapa_actions_pixels"])
    assets = make_assets(config)
    learner, batch = make_learner(config, assets), make_batch(lay_out(config, assets))
    learner(batch).loss.backward()
    learned = {".".join(name.split(".")[:2]) for name, p in learner.named_parameters() if p.grad is not None}
    assert learned == {"objective.actions", "objective.forward_model"}
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in learner.parameters())


def test_evaluation_leaves_the_codebooks_alone() -> None:
    config = small(PRESETS["tiny_lapa_actions"])
    assets = make_assets(config)
    learner, batch = make_learner(config, assets), make_batch(lay_out(config, assets))
    codebooks = learner.objective.actions.codebooks
    learner.eval().run(batch)
    figures = learner.monitors(batch)
    assert not codebooks.met.any()
    assert figures.keys() == {"copy_ratio", "swap_ratio", "code_perplexity"}
    assert all(math.isfinite(value) for value in figures.values())
    learner.train().run(batch)
    assert codebooks.met.sum() == codebooks.met.shape[0] * len(batch.pairs)


def test_resume_is_exact(tmp_path: Path) -> None:
    """The codebooks are state like any other: a crash after the third step, and a resume from the second."""
    straight = make_run(run_config(tmp_path / "a"))
    train(straight)
    broken = make_run(run_config(tmp_path / "b"))
    shares = broken.shares
    broken.shares = lambda first: itertools.islice(shares(first), 3)
    with pytest.raises(StopIteration):
        train(broken)
    again = make_run(run_config(tmp_path / "b"))
    assert again.resume_from is not None and history.step_of(again.resume_from) == 2
    train(again)
    for name, value in straight.learner.state_dict().items():
        assert torch.equal(value, again.learner.state_dict()[name]), name


KINDS = [Kind("description", (A, L), 2), Kind("description", (L, L), 1)]
KINDS += [Kind("pure_video", (U, U), 2), Kind("generation", (A, L), 3)]


def one_of_two(rank: int, root: str) -> None:
    """Entry of a spawned process; the first rank has no pairs at all."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{root}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=600))
    run = make_run(run_config(Path(root), "two"), kinds=KINDS, rows=4, shuffle=False, rank=rank, world=2)
    train(run)
    torch.save(run.learner.state_dict(), f"{root}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_learn_the_codebooks_of_one(tmp_path: Path) -> None:
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    single = make_run(run_config(tmp_path, "one"), kinds=KINDS, rows=4, shuffle=False)
    train(single)
    ranks = [torch.load(tmp_path / f"rank{r}.pt") for r in (0, 1)]
    for name, value in single.learner.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], value, atol=2e-5, rtol=1e-3, msg=name)
    assert single.learner.objective.actions.codebooks.usage.any()


# --- second stage ----------------------------------------------------------------------------------------------------


def test_labels_are_not_seen() -> None:
    """A labelled clip is laid out as the same clip without labels; its codes are nowhere."""
    config = small(PRESETS["tiny_lapa_codes"])
    assets = make_assets(config)
    for task in ("generation", "continuation", "description"):
        known, unknown = (make_batch(lay_out(config, assets, [Kind(task, (s, s), 3)])) for s in (L, U))
        same_batch(known, unknown)
        chunk = known.k >= 0
        assert (known.ids[chunk] == assets.spec.vocab.mask).all() and not len(known.scored_at)
        assert ((known.pair >= 0) == (chunk & (torch.tensor(task != "description")))).all()


def test_every_chunk_predicts_the_codes_of_its_pair() -> None:
    """Position k asks for code floor(k M / K), of both hands alike."""
    config = small(PRESETS["tiny_lapa_codes"])
    assets = make_assets(config)
    learner = make_learner(config, assets).eval()
    batch = make_batch(lay_out(config, assets))
    features, out, losses = learner.run(batch)
    assert features is not None
    objective = learner.objective
    codes = objective.actions(torch.nn.functional.layer_norm(features.pairs, (16,)))
    per_code = assets.spec.vocab.chunk_tokens // objective.tokens
    weight = objective.head.weight.unflatten(0, (objective.tokens, -1))
    for i, kind in enumerate(MIXED):
        values = []
        for b, t in ((batch.pair >= 0) & (batch.sample == i)).nonzero().tolist():
            m = int(batch.k[b, t]) // per_code
            logits = out.final_at(torch.tensor([b * batch.ids.shape[1] + t]))[0] @ weight[m].T
            values.append(-torch.log_softmax(logits, -1)[codes[batch.pair[b, t], m]].item())
        expected = sum(values) / len(values) if values else 0.0
        assert losses.terms["codes"][i].item() == pytest.approx(expected, abs=1e-4), kind
        assert bool(losses.has["codes"][i]) == (kind.task != "description")
        assert bool(losses.has["text"][i]) == (kind.task == "description")


def test_the_codes_can_be_learned() -> None:
    config = small(PRESETS["tiny_lapa_codes"])
    assets = make_assets(config)
    learner, laid = make_learner(config, assets), lay_out(config, assets, [MIXED[1], MIXED[7]])
    optimizer = build_optimizer(learner, config.optim)
    batch, losses = make_batch(laid), []
    for _ in range(15):
        out = learner(batch)
        (out.loss / len(laid)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(out.sums["codes/sum"].item() / out.sums["codes/count"].item())
    assert losses[0] == pytest.approx(math.log(config.objective.actions.codes), rel=0.2)
    assert losses[-1] < 0.7 * losses[0]
    figures = learner.eval().monitors(batch)
    assert 0 < figures["code_majority"] <= 1 and figures["code_accuracy"] > 0.4


def test_more_codes_than_positions_are_refused() -> None:
    config = small(PRESETS["tiny_lapa_codes"], objective__actions__tokens=33)
    with pytest.raises(ConfigError, match="32 tokens"):
        make_learner(config)
