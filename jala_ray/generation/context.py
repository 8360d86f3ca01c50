"""Forward passes over pieces of a batch's sequences, with a key-value cache of what came before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jala_ray.batch import Batch
from jala_ray.models.kv_cache import KVCache
from jala_ray.models.masks import may_attend
from jala_ray.models.vla import VLA

VOID = {"ids": 0, "sample": -1, "position": 0, "place": -1, "lo": -1, "hi": 0, "hand": -1, "image_k": -1}
"""Columns of a piece, and what stands in its padding, which sees padding alone."""


@dataclass
class Piece:
    """Consecutive tokens of every row of a batch of one sample a row: columns (B, L) as in `Batch`, and additions (B, L, D)."""

    ids: Tensor
    sample: Tensor
    position: Tensor
    """(B, L) or (B, L, axes), as `Backbone.positions` gives it for the whole rows."""
    place: Tensor
    """Index of the token in its row, which `lo` and `hi` count; keys of a cache keep theirs, whatever padding lies between them."""
    lo: Tensor
    hi: Tensor
    hand: Tensor
    image_k: Tensor
    extra: Tensor | None = None

    @classmethod
    def whole(cls, batch: Batch, positions: Tensor, extra: Tensor | None) -> Piece:
        """All tokens of a batch."""
        place = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand_as(batch.ids)
        return cls(batch.ids, batch.sample, positions, place, batch.lo, batch.hi, batch.hand, batch.image_k, extra)

    def __len__(self) -> int:
        return self.ids.shape[1]

    @property
    def image_at(self) -> Tensor:
        """Where the picture's tokens lie among B * L."""
        return (self.image_k.flatten() >= 0).nonzero()[:, 0]

    @property
    def picture(self) -> Tensor:
        """The picture of each of those: a sample has one."""
        return self.sample.flatten()[self.image_at]

    def at(self, index: Tensor) -> Piece:
        """Tokens `index` (B, L) of each row; -1 is padding."""
        safe, void = index.clamp(min=0), index < 0
        return self._each(lambda column, fill: _taken(column, safe, void, fill))

    def take(self, rows: Tensor) -> Piece:
        """Batch rows `rows` (B',)."""
        return self._each(lambda column, _: column[rows])

    def tokens(self, first: int, last: int) -> Piece:
        return self._each(lambda column, _: column[:, first:last])

    def with_ids(self, ids: Tensor, keeps_extra: Tensor | None = None) -> Piece:
        """Other tokens (B, L) in the same places; additions stay where `keeps_extra` (B, L) holds, and nowhere by default."""
        extra = self.extra
        if extra is not None:
            extra = extra * (torch.zeros_like(ids, dtype=torch.bool) if keeps_extra is None else keeps_extra)[..., None]
        return replace(self, ids=ids, extra=extra)

    def __add__(self, other: Piece) -> Piece:
        extra = None
        if self.extra is not None and other.extra is not None:
            extra = torch.cat([self.extra, other.extra], 1)
        return Piece(**{n: torch.cat([getattr(self, n), getattr(other, n)], 1) for n in VOID}, extra=extra)

    def _each(self, change: Callable[[Tensor, int], Tensor]) -> Piece:
        """`change` of every column and what is void there."""
        columns = {name: change(getattr(self, name), fill) for name, fill in VOID.items()}
        return Piece(**columns, extra=None if self.extra is None else change(self.extra, 0))


def _taken(column: Tensor, index: Tensor, void: Tensor, fill: int) -> Tensor:
    """Entries `index` (B, L) of each row of a column (B, T) or (B, T, D), `fill` where void."""
    if column.ndim > index.ndim:
        index, void = index[..., None].expand(*index.shape, column.shape[-1]), void[..., None]
    return column.gather(1, index).masked_fill(void, fill)


class Context:
    """What the rows of a batch have seen so far: keys, values, and their places in the rows, which say who may look at them."""

    def __init__(self, vla: VLA, images: Tensor) -> None:
        """`images` (S, 3, H, W) uint8, which `sample` of the pieces counts."""
        self.vla, self.images = vla, images
        self.cache = KVCache()
        self.place: Tensor | None = None
        """(B, len(self)), -1 for padding."""
        self.passes = 0
        """Forward passes of the backbone so far."""

    def __len__(self) -> int:
        return len(self.cache)

    def run(self, piece: Piece, keep: int) -> Tensor:
        """Final hidden states (B, L, D) of a piece; the first `keep` of its tokens stay for later pieces to see."""
        past = len(self)
        place = piece.place if self.place is None else torch.cat([self.place, piece.place], 1)
        mask = may_attend(piece.lo[:, :, None], piece.hi[:, :, None], place[:, None, :])
        images = self.images if len(piece.image_at) else self.images[:0]
        embedded = self.vla.embed(piece, images, piece.extra)
        self.cache.growing = keep > 0
        final, _, _ = self.vla.backbone(embedded, mask[:, None], piece.position, (), self.cache)
        self.passes += 1
        if keep:
            self.place = place
            self.crop(past + keep)
        return final

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.cache.crop(length)
        self.place = None if self.place is None else self.place[:, :length]

    def take(self, rows: Tensor) -> Context:
        """A context of its own for batch rows `rows` (B',), repeats allowed."""
        other = Context(self.vla, self.images)
        other.cache = self.cache.rows(rows)
        other.place = None if self.place is None else self.place[rows]
        return other

    def fewer(self, rows: Tensor) -> Context:
        """The same with the batch rows `rows` (B',) that have more to come; passes go on counting."""
        other = self.take(rows)
        other.passes = self.passes
        return other
