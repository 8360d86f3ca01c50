"""Evaluators while a run trains: when each is due, what it is given, and that nothing it does or breaks reaches the training."""

from __future__ import annotations

import contextlib
import pickle
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from jala_ray.batch import Batch
from jala_ray.config.evaluators import Evaluator
from jala_ray.training.device import autocast, gather, to_device
from jala_ray.training.watch import waiting_for

if TYPE_CHECKING:
    from jala_ray.data.manifest.table import Manifest


@dataclass(frozen=True)
class Moment:
    """A training run between two steps. The learner is the one that is trained: look, and change nothing."""

    step: int
    """Optimizer steps done."""
    learner: Any
    """`training.learner.Learner` on its device, in eval mode."""
    device: torch.device
    config: Any
    """The run's: a `RunConfig`."""
    assets: Any = None
    """`Assets`: text tokenizer, motion tokenizer, and what a sequence looks like."""
    rank: int = 0
    world: int = 1
    held_out: Mapping[str, Sequence[Batch]] = field(default_factory=dict)
    """By domain, this rank's share of the held-out batches, on the host: the same at every evaluation, with the same draws."""
    batch: Batch | None = None
    """First micro-batch of this rank's last step, on its device."""

    @property
    def manifest(self) -> Manifest:
        """The run's manifest, opened anew. A run from a cache alone has none."""
        from jala_ray.data.manifest.table import Manifest
        from jala_ray.training.setup import storage_options

        return Manifest(self.config.data.manifest, storage_options(self.config))

    def on_device(self, batch: Batch) -> Batch:
        return to_device(batch, self.device)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of training."""
        return autocast(self.device, self.config.train.precision)


class PartOrFailure(NamedTuple):
    """A rank's part, or why there is none."""

    part: Any
    failure: str | None = None


class Evaluations:
    """The evaluators of a run."""

    def __init__(self, evaluators: Sequence[tuple[Evaluator, int]]) -> None:
        self.evaluators = evaluators
        self._said = set[str]()

    def due(self, done: int, final: bool) -> list[Evaluator]:
        """Those of this step; all of them at the last one."""
        return [one for one, steps in self.evaluators if final or done % steps == 0]

    def measure(self, due: Sequence[Evaluator], at: Moment) -> dict[str, Any]:
        """Figures by the names they have in a row; `eval/LABEL/failed` says why one has none. Every rank calls it."""
        row: dict[str, Any] = {}
        for one in due:
            if one.every_rank or at.rank == 0:
                with waiting_for(f"the evaluation {one.name} after step {at.step}"):
                    row |= self._one(one, at)
        return row

    def _one(self, one: Evaluator, at: Moment) -> dict[str, Any]:
        with undisturbed(at.learner, at.device):
            outcome = _attempt(lambda: _packable(one.part(at)))
        outcomes = gather(outcome, at.world) if one.every_rank else [outcome]
        failures = [(rank, o.failure) for rank, o in enumerate(outcomes) if o.failure is not None]
        if not failures:
            made = _attempt(lambda: _plain(one.figures([o.part for o in outcomes]), one.prefix))
            if made.failure is None:
                return made.part
            failures = [(0, made.failure)]
        return self._failed(one, at, failures)

    def _failed(self, one: Evaluator, at: Moment, failures: Sequence[tuple[int, str]]) -> dict[str, Any]:
        """Said once an evaluator: a run may have thousands of them."""
        rank, why = failures[0]
        where = f"rank {rank} of {at.world}: {why}" if at.world > 1 and one.every_rank else why
        if at.rank == 0 and one.name not in self._said:
            self._said.add(one.name)
            print(f"WARNING step {at.step}: the evaluation {one.name} failed, training goes on: {where}", flush=True)
        return {f"eval/{one.label}/failed": where}


def _attempt(work: Any) -> PartOrFailure:
    try:
        return PartOrFailure(work())
    except Exception as error:
        return PartOrFailure(None, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _packable(part: Any) -> Any:
    """Itself; raises where it can't travel, here and not while all ranks gather."""
    pickle.dumps(part)
    return part


def _plain(figures: Mapping[str, Any], prefix: str) -> dict[str, float | None]:
    """Numbers as a row holds them. Raises `TypeError` for what is none."""
    return {f"{prefix}{name}": None if value is None else float(value) for name, value in figures.items()}


@contextlib.contextmanager
def undisturbed(learner: nn.Module, device: torch.device) -> Iterator[None]:
    """In eval mode and without gradients; afterwards modes and random states are what they were, and no gradient is left.

    Random states begin alike each time, so that what draws from them gives the same after the same steps.
    """
    modes = [(module, module.training) for module in learner.modules()]
    python, numpy, host = random.getstate(), np.random.get_state(), torch.get_rng_state()
    there = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    learner.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        learner.zero_grad(set_to_none=True)
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(host)
        if there is not None:
            torch.cuda.set_rng_state(there, device)
