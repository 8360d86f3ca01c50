"""Who may look at whom: one interval for each query, behind every attention mask (METHOD 3).

A query q sees the keys of its sample that are not later than q, and all of its own motion chunk. A sample and a chunk each lie in one
piece, so that is the interval [lo, hi) of the row: from the sample's start to q + 1 or the chunk's end, whichever is later. Data workers
make the two vectors (`Batch.lo`, `Batch.hi`); nothing here knows samples or chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def may_attend(lo: Tensor, hi: Tensor, place: Tensor) -> Tensor:
    """Whether the interval [lo, hi) of a query holds a key's place in the row. All arguments broadcast together."""
    return (lo <= place) & (place < hi)


def dense_mask(lo: Tensor, hi: Tensor) -> Tensor:
    """Intervals (B, T) of queries -> (B, 1, T, T) bool, True where attention is allowed."""
    place = torch.arange(lo.shape[1], device=lo.device)
    return may_attend(lo[:, :, None], hi[:, :, None], place)[:, None]


def flex_mask(lo: Tensor, hi: Tensor) -> Any:
    """The same mask as a FlexAttention `BlockMask`."""
    from torch.nn.attention.flex_attention import create_block_mask

    def predicate(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return may_attend(lo[b, q], hi[b, q], k)

    rows, length = lo.shape
    return create_block_mask(predicate, rows, None, length, length, device=str(lo.device))
