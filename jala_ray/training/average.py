"""A moving average of all weights that learn, which held-out rows are measured with and a policy may act with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from jala_ray.types import CheckpointError

FILE = "average.safetensors"
"""In a checkpoint, beside its weights: those that are averaged, under the same names."""


class Average:
    """Of the parameters of a module that have gradients, in their own precision."""

    def __init__(self, module: nn.Module, decay: float, values: dict[str, Tensor] | None = None) -> None:
        """`values` are those of a checkpoint; None: the average begins with the weights as they are."""
        self.decay = decay
        self._learned = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.values = {name: p.detach().clone() for name, p in self._learned.items()}
        if values is not None:
            refuse_other(values, self.values)
            for name, value in values.items():
                self.values[name].copy_(value)

    @torch.no_grad()
    def update(self, done: int) -> None:
        """After `done` optimizer steps. The first steps are soon forgotten: the decay is at most (1 + done) / (10 + done)."""
        decay = min(self.decay, (1 + done) / (10 + done))
        current = [p.detach() for p in self._learned.values()]
        torch._foreach_lerp_(list(self.values.values()), current, 1.0 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The module has the averaged weights within, and its own again afterwards; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def into(self) -> None:
        """The module has the averaged weights from now on."""
        for name, parameter in self._learned.items():
            parameter.copy_(self.values[name])

    def _swap(self) -> None:
        for name, parameter in self._learned.items():
            parameter.data, self.values[name] = self.values[name], parameter.data

    def save(self, folder: Path) -> None:
        host = {name: value.cpu().contiguous() for name, value in self.values.items()}
        safetensors.torch.save_file(host, folder / FILE)


def read(folder: Path) -> dict[str, Tensor]:
    """Averaged weights of a checkpoint. Raises `CheckpointError` where it has none."""
    if not (folder / FILE).exists():
        remedy = "It was made with train.average 0: take its weights as they are."
        raise CheckpointError(FILE, str(folder), "a checkpoint with averaged weights", remedy)
    return safetensors.torch.load_file(folder / FILE)


def refuse_other(given: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raises `CheckpointError` unless names and shapes are the same."""
    if {name: x.shape for name, x in given.items()} != {name: x.shape for name, x in own.items()}:
        wrong = ", ".join(sorted(given.keys() ^ own.keys())[:3]) or "shapes"
        raise CheckpointError(FILE, wrong, "averages of what this configuration learns", "Use the run's own settings.")
