"""A step that runs out of memory: it is run again with parts of its micro-batches, and nothing of the failed try stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from jala_ray.batch import Batch
from jala_ray.presets import PRESETS
from jala_ray.training.learner import StepOutput
from jala_ray.training.parallel import Alone, Ddp
from jala_ray.training.pretraining import Pretraining
from jala_ray.training.trainer import train
from jala_ray.types import UserError
from tests.support import MIXED
from tests.training.run import make_run, run_config
from tests.training.test_loop import rows

FULL = 400
"""Tokens that fit, of micro-batches of up to about 1,200."""


class Explodes(torch.autograd.Function):
    """A loss whose backward pass finds no memory."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory, in the backward pass")


class Card(nn.Module):
    """A model on a card that holds so many tokens: what is too much is computed, and then there is no room."""

    def __init__(self, model: nn.Module, tokens: int, backward: bool = False) -> None:
        super().__init__()
        self.model, self.tokens, self.backward = model, tokens, backward
        self.seen: list[int] = []

    def forward(self, batch: Batch) -> StepOutput:
        self.seen.append(batch.ids.numel())
        out = self.model(batch)
        if batch.ids.numel() > self.tokens and not self.backward:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if batch.ids.numel() > self.tokens:
            return StepOutput(Explodes.apply(out.loss), out.sums)
        return out


@dataclass
class OnCard(Alone):
    card: Callable[[nn.Module], nn.Module] | None = None

    def wrap(self, learner: nn.Module) -> nn.Module:
        return learner if self.card is None else self.card(learner)


@dataclass
class CardInDdp(Ddp):
    tokens: int = FULL

    def wrap(self, learner: nn.Module) -> nn.Module:
        return super().wrap(Card(learner, self.tokens))


def run_of(root: Path, card: Callable[[nn.Module], nn.Module] | None = None, **values: Any) -> Pretraining:
    """In float64, with micro-batches of six samples."""
    config = run_config(root, **{"train__micro_batch": 6, "train__steps": 3, **values})
    run = make_run(config)
    run.learner.double()
    run.parallel = OnCard(card)
    return run


def close(one: Pretraining, other: Pretraining, within: float = 1e-9) -> None:
    mine, theirs = one.learner.state_dict(), other.learner.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(
            value, theirs[name], atol=within, rtol=within, msg=lambda said, n=name: f"{n}: {said}"
        )


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("backward", [False, True])
def test_it_equals_a_run_of_small_micro_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], packing: bool, backward: bool
) -> None:
    card: list[Card] = []

    def wrap(model: nn.Module) -> nn.Module:
        card.append(Card(model, FULL, backward))
        return card[0]

    full = run_of(tmp_path / "full", wrap, data__packing=packing)
    train(full)
    told = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert told and all(line.startswith("rank 0: ") and "--train.micro-tokens" in line for line in told)
    assert full.room.tokens is not None and full.room.tokens < FULL * 2 and max(card[0].seen) > FULL
    # What is known of the memory holds for the steps that come: none of them fails again.
    assert sum(tokens > FULL for tokens in card[0].seen) == len(told) <= 3
    free = run_of(tmp_path / "free", data__packing=packing, train__micro_tokens=FULL)
    train(free)
    close(full, free)
    for mine, theirs in zip(rows(full.folder), rows(free.folder), strict=True):
        assert mine["rows_digest"] == theirs["rows_digest"]
        for name in ("samples", "rows", "loss", "loss_mcp", "loss_align", "mcp_accuracy"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-6), name


def test_what_an_objective_met_in_a_dropped_try_does_not_count(tmp_path: Path) -> None:
    """LAPA's codebooks add up latents in the forward pass."""
    found = []
    for name, tokens, card in (("full", 16384, lambda model: Card(model, FULL)), ("free", FULL, None)):
        base = run_config(tmp_path / name, train__micro_batch=6, train__steps=3, train__micro_tokens=tokens)
        objective = replace(PRESETS["tiny_lapa_actions"].objective, perceiver=base.objective.perceiver)
        run = make_run(replace(base, objective=objective))
        run.parallel = OnCard(card)
        train(run)
        found.append(run)
    assert found[0].room.tokens is not None
    assert any(name.endswith("codebooks.usage") for name in found[0].learner.state_dict())
    close(*found, within=1e-4)


def test_a_sample_that_does_not_fit_is_told(tmp_path: Path) -> None:
    run = run_of(tmp_path, lambda model: Card(model, 20))
    with pytest.raises(UserError, match=r"rank 0.*tokens.*single sample.*gradient-checkpointing.*lora.*max-tokens"):
        train(run)


def test_a_backward_pass_that_reduces_cannot_be_repeated(tmp_path: Path) -> None:
    """Some of its gradients are with the others already. In its forward pass nothing is, yet."""
    for backward in (False, True):
        run = run_of(tmp_path / str(backward))
        run.begin()
        share = next(run.shares(0))
        tried: list[int] = []

        def passes(model: Any, batch: Batch, number: int, of: int, tried: list[int] = tried) -> None:
            tried.append(batch.ids.numel())
            model(batch).loss.backward()

        card, batches = Card(run.learner, FULL, backward), share.micro
        arguments = (card, batches, passes, lambda: None, True)
        if backward:
            with pytest.raises(UserError, match=r"reduces gradients.*--train\.micro-tokens \d+"):
                run.room.attempts(*arguments)
        else:
            run.room.attempts(*arguments)
            assert sum(tokens > FULL for tokens in tried) in (1, 2) and tried[-1] <= FULL


def one_of_two(rank: int, root: str) -> None:
    """Entry of a spawned process. Rank 0 has little memory, rank 1 enough."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{root}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=600))
    config = run_config(Path(root), name="two", train__batch=8, train__micro_batch=3, train__steps=2)
    run = make_run(config, kinds=MIXED, rows=len(MIXED), shuffle=False, rank=rank, world=2)
    run.learner.double()
    run.parallel = CardInDdp(torch.device("cpu"), tokens=FULL if rank == 0 else 10_000)
    train(run)
    torch.save({"weights": run.learner.state_dict(), "tokens": run.room.tokens}, f"{root}/rank{rank}.pt")
    dist.destroy_process_group()


def test_a_rank_alone_runs_its_step_again(tmp_path: Path) -> None:
    mp.start_processes(one_of_two, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    assert ranks[0]["tokens"] is not None and ranks[1]["tokens"] is None
    one = make_run(
        run_config(tmp_path, name="one", train__batch=8, train__steps=2), kinds=MIXED, rows=len(MIXED), shuffle=False
    )
    one.learner.double()
    train(one)
    for name, value in one.learner.state_dict().items():
        for rank in ranks:
            torch.testing.assert_close(rank["weights"][name], value, atol=1e-9, rtol=1e-9)
