"""A moving average of all weights that learn, which held-out rows are measured with and a policy may act with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from jala_ray.models.shards import own_part
from jala_ray.models.tensor_files import Shape, TensorFiles, fill, has_tensors
from jala_ray.types import CheckpointError

KIND = "average"
"""What the names of a checkpoint's files begin with that hold it, beside the weights and under the same names."""


class Average:
    """Of the parameters of a module that have gradients, in their own precision."""

    def __init__(self, module: nn.Module, decay: float, values: TensorFiles | None = None) -> None:
        """`values` are those of a checkpoint; None: the average begins with the weights as they are."""
        self.decay = decay
        self._learned = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.values = {name: p.detach().clone() for name, p in self._learned.items()}
        if values is not None:
            refuse_other(values.shapes(), {name: tuple(value.shape) for name, value in self.values.items()})
            fill(self.values, values, self.values)

    @torch.no_grad()
    def update(self, done: int) -> None:
        """After `done` optimizer steps. The first steps are soon forgotten: the decay is at most (1 + done) / (10 + done)."""
        decay = min(self.decay, (1 + done) / (10 + done))
        values, current = ([*map(own_part, tensors.values())] for tensors in (self.values, self._learned))
        torch._foreach_lerp_(values, current, 1.0 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The module has the averaged weights within, and its own again afterwards; nothing is copied but shards."""
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

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._learned.items():
            if isinstance(parameter, DTensor):  # its storage is what other ranks are sent
                own, averaged = own_part(parameter), own_part(self.values[name])
                kept = own.clone()
                own.copy_(averaged)
                averaged.copy_(kept)
            else:
                parameter.data, self.values[name] = self.values[name], parameter.data


def read(folder: Path) -> TensorFiles:
    """Averaged weights of a checkpoint. Raises `CheckpointError` where it has none."""
    if not has_tensors(folder, KIND):
        remedy = "It was made with train.average 0: take its weights as they are."
        raise CheckpointError(KIND, str(folder), "a checkpoint with averaged weights", remedy)
    return TensorFiles.of_folder(folder, stem=KIND)


def refuse_other(given: dict[str, Shape], own: dict[str, Shape]) -> None:
    """Raises `CheckpointError` unless names and shapes are the same."""
    if given != own:
        wrong = ", ".join(sorted(given.keys() ^ own.keys())[:3]) or "shapes"
        raise CheckpointError(KIND, wrong, "averages of what this configuration learns", "Use the run's own settings.")
