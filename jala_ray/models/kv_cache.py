"""Keys and values of earlier passes, in buffers with room for more: a pass writes its own in place behind them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROOM = 256
"""Positions that buffers grow by."""


class Past:
    """What one block attends to: keys and values (B, T, heads * d) of earlier passes and, behind them, of the pass that is running.

    Both are windows onto longer buffers. A block learns from their shapes alone where its own begin, so that compiled, it is one graph
    for all blocks and lengths. Heads have no axis of their own: dynamo takes axes that are equally long in the first pass for one,
    and a batch of as many rows as there are heads would be a graph for itself.
    """

    def __init__(self, key: Tensor | None = None, value: Tensor | None = None) -> None:
        self.key, self.value = key, value
        self._whole = () if key is None or value is None else (key, value)

    def __bool__(self) -> bool:
        return bool(self._whole)

    def open(self, length: int) -> None:
        """Make the windows `length` positions long, of which a pass writes the last ones.

        A window is never all of a buffer, whose strides would ask for a graph of its own.
        """
        if self._whole:
            if length >= self._whole[0].shape[1]:
                self._whole = tuple(_longer(whole, length) for whole in self._whole)
            self.key, self.value = (whole[:, :length] for whole in self._whole)

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called by the block with its new keys and values (B, heads, L, d); returns all of them, (B, heads, T, d) in the values' dtype."""
        if self.key is None or self.value is None:
            none = value.new_empty(len(value), 0, value.shape[1] * value.shape[3])
            self._whole = (_longer(none, value.shape[2]), _longer(none, value.shape[2]))
            self.open(value.shape[2])
        assert self.key is not None and self.value is not None
        return _written(self.key, key), _written(self.value, value)

    def rows(self, index: Tensor) -> Past:
        """A past of its own for batch rows `index` (B',)."""
        return Past(*(whole[index] for whole in self._whole))


def _written(window: Tensor, new: Tensor) -> Tensor:
    """A window (B, T, heads * d) that ends with what is new (B, heads, L, d), as (B, heads, T, d)."""
    window[:, window.shape[1] - new.shape[2] :].copy_(new.transpose(1, 2).flatten(2))
    return window.unflatten(2, (new.shape[1], new.shape[3])).transpose(1, 2)


def _longer(old: Tensor, length: int) -> Tensor:
    """A buffer with room for more than `length` positions, beginning with what an old one held."""
    new = old.new_empty(len(old), (length // ROOM + 1) * ROOM, old.shape[2])
    new[:, : old.shape[1]] = old
    return new


class KVCache:
    """Keys and values of the positions already seen, a `Past` for each language block.

    While `growing`, a forward pass appends its positions. Set it False to read a fixed prefix any number of times (the passes over one
    chunk share the prefix before it): each pass then writes over what the last one left behind the prefix.
    """

    def __init__(self) -> None:
        self.blocks: list[Past] = []
        self.growing = True
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def open(self, blocks: int, tokens: int) -> None:
        """Before a pass of `tokens` positions through so many blocks."""
        self.blocks = self.blocks or [Past() for _ in range(blocks)]
        for past in self.blocks:
            past.open(self._length + tokens)

    def close(self, tokens: int) -> None:
        """After it."""
        if self.growing:
            self._length += tokens

    def crop(self, length: int) -> None:
        """Forget every position from `length` on."""
        self._length = min(self._length, length)

    def rows(self, index: Tensor) -> KVCache:
        """A cache of its own for batch rows `index` (B',), repeats allowed."""
        other = KVCache()
        other.blocks, other._length = [past.rows(index) for past in self.blocks], self._length
        return other


def run_over(block: torch.nn.Module, x: Tensor, arguments: dict[str, Any]) -> Tensor:
    """A block over (B, L, D), beside what is compiled of it for training: graphs of passes over a cache are their own."""
    return block.forward(x, **arguments)
