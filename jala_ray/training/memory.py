"""A step that runs out of a GPU's memory: its micro-batches are split, and it is run again from its first pass.

Nothing of the try that failed stays: gradients, sums and what an objective met are dropped, weights have not moved. A rank does so alone,
and the others wait for it where gradients are reduced. A backward pass that reduces them has given some away already when it fails: that
can't be repeated, and the run ends with what to lower. Nor can any pass where ranks gather weights for it (`parallel.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from jala_ray.batch import Batch
from jala_ray.data.samples.halving import fitting
from jala_ray.types import UserError

SAVERS = "--model.backbone.gradient-checkpointing True, --model.backbone.lora.rank 64"
"""Settings that make a sample take less of a GPU's memory."""

Passes = Callable[[Any, Batch, int, int], None]
"""A model, a micro-batch, its number from 1 on, and how many there are: forward and backward."""


@dataclass
class Watched:
    """A model that remembers whether its last forward pass ended."""

    model: nn.Module
    seen: bool = False

    def __call__(self, batch: Batch) -> Any:
        self.seen = False
        out = self.model(batch)
        self.seen = True
        return out


@dataclass
class Room:
    """How many tokens a forward pass of this rank may have. It shrinks when memory is full, for the rest of the attempt."""

    pad_multiple: int
    rank: int = 0
    repeats: bool = True
    """This rank may run passes again without the others."""
    tokens: int | None = None
    """None: as many as the batches bring."""

    def attempts(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        passes: Passes,
        drop: Callable[[], None],
        reduces: bool,
    ) -> None:
        """`passes` for each batch or its parts, again from the first one until all of them fit.

        `drop` forgets what passes have done. `reduces`: the last backward pass reduces gradients over ranks. Raises `UserError` where a
        single sample does not fit, or that pass ran out of memory.
        """
        watched = Watched(model)
        while not self._fit(watched, batches, passes, reduces):
            drop()
            torch.cuda.empty_cache()

    def _fit(
        self,
        model: Watched,
        batches: Sequence[Batch],
        passes: Passes,
        reduces: bool,
    ) -> bool:
        parts = [part for batch in batches for part in fitting(batch, self.tokens, self.pad_multiple)]
        for number, part in enumerate(parts, 1):
            try:
                passes(model, part, number, len(parts))
            except torch.OutOfMemoryError as error:
                self._shrink(
                    part, error, given_away=not self.repeats or (reduces and number == len(parts) and model.seen)
                )
                return False
        return True

    def _shrink(self, part: Batch, error: torch.OutOfMemoryError, *, given_away: bool) -> None:
        tokens, half = part.ids.numel(), max(part.ids.numel() // 2, 1)
        found = f"full at {tokens:,} tokens in a forward pass"
        if given_away:
            remedy = f"Pass --train.micro-tokens {half} (not below data.max_tokens), or {SAVERS}."
            why = "reduces gradients over ranks" if self.repeats else "gathers weights from other ranks"
            expected = f"room for the pass that {why}, which can't be repeated"
            raise UserError(f"memory of rank {self.rank}", found, expected, remedy) from error
        if len(part.weight) == 1:
            remedy = f"Pass {SAVERS}, or a smaller --data.max-tokens."
            raise UserError(f"memory of rank {self.rank}", found, "room for a single sample", remedy) from error
        self.tokens = half
        print(
            f"rank {self.rank}: out of memory with {tokens:,} tokens in a forward pass. The step is run again, with at most {half:,}, "
            f"as are those after it. --train.micro-tokens {half} begins so; {SAVERS} take less for each.",
            flush=True,
        )
