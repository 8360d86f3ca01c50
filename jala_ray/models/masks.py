"""Who may look at whom: one interval for each query, behind every attention mask (method.md 3).

A query q sees the keys of its sample that are not later than q, and all of its own motion chunk. A sample and a chunk each lie in one
piece, so that is the interval [lo, hi) of the row: from the sample's start to q + 1 or the chunk's end, whichever is later. Data workers
make the two vectors (`Batch.lo`, `Batch.hi`); nothing here knows samples or chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 128
"""Side of FlexAttention's blocks."""


def may_attend(lo: Tensor, hi: Tensor, place: Tensor) -> Tensor:
    """Whether the interval [lo, hi) of a query holds a key's place in the row. All arguments broadcast together."""
    return (lo <= place) & (place < hi)


def dense_mask(lo: Tensor, hi: Tensor) -> Tensor:
    """Intervals (B, T) of queries -> (B, 1, T, T) bool, True where attention is allowed."""
    place = torch.arange(lo.shape[1], device=lo.device)
    return may_attend(lo[:, :, None], hi[:, :, None], place)[:, None]


def flex_mask(lo: Tensor, hi: Tensor) -> Any:
    """The same mask as a FlexAttention `BlockMask`, whose blocks come of the intervals: no T x T mask is made on the way."""
    from torch.nn.attention.flex_attention import BlockMask

    def predicate(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return may_attend(lo[b, q], hi[b, q], k)

    length = lo.shape[1]
    short = -length % BLOCK
    first, end = (
        F.pad(x, (0, short)).unflatten(1, (-1, BLOCK))[..., None] for x in (lo, hi)
    )  # (B, Q blocks, BLOCK, 1)
    edge = torch.arange(0, length, BLOCK, device=lo.device)
    full = ((first <= edge) & (edge + BLOCK <= end)).all(2)
    partial = ((first < edge + BLOCK) & (edge < end)).any(2) & ~full
    sizes: dict[str, Any] = {"BLOCK_SIZE": BLOCK, "seq_lengths": (length, length)}
    return BlockMask.from_kv_blocks(*_ordered(partial), *_ordered(full), mask_mod=predicate, **sizes)


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, Q blocks, KV blocks) bool -> how many are set in each row, and their columns before all others: int32, with an axis for heads."""
    count, columns = blocks.sum(-1), blocks.int().argsort(dim=-1, descending=True, stable=True)
    return count[:, None].int(), columns[:, None].int()
