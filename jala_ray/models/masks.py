"""Who may look at whom: one predicate behind every attention mask (METHOD 3).

A query q sees a key k of the same sample if k is not later than q, or if both lie in the same motion chunk. Prefix and text
have block -1 and are therefore causal; a sequence whose blocks are all -1 is plain causal (next-token training).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def may_attend(sample_q: Tensor, sample_k: Tensor, block_q: Tensor, block_k: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """The predicate. All arguments broadcast together; `q` and `k` are indices in the packed row."""
    same_chunk = (block_q == block_k) & (block_q >= 0)
    return (sample_q == sample_k) & ((k <= q) | same_chunk)


def dense_mask(sample: Tensor, block: Tensor) -> Tensor:
    """(B, T) sample and block ids -> (B, 1, T, T) bool, True where attention is allowed.

    Padding has sample -1: it sees padding only, so that no row of the mask is empty (a softmax over nothing is NaN), and no
    real token sees it.
    """
    index = torch.arange(sample.shape[1], device=sample.device)
    allowed = may_attend(
        sample[:, :, None],
        sample[:, None, :],
        block[:, :, None],
        block[:, None, :],
        index[:, None],
        index[None, :],
    )
    return allowed[:, None]


def flex_mask(sample: Tensor, block: Tensor) -> Any:
    """The same mask as a FlexAttention `BlockMask` for (B, T) sample and block ids."""
    from torch.nn.attention.flex_attention import create_block_mask

    def predicate(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return may_attend(sample[b, q], sample[b, k], block[b, q], block[b, k], q, k)

    rows, length = sample.shape
    return create_block_mask(predicate, rows, None, length, length, device=str(sample.device))
