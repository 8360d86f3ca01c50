"""Attention of the language blocks, one function for every form of who may look at whom (`masks.py`); registered with transformers.

Keys and values stay as many as the model has: kernels share them among groups of query heads.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface

from jala_ray.models.masks import Spans

NAME = "jala_ray"
"""Of this attention among those of transformers."""
Allowed = Tensor | BlockMask | Spans
"""What a block is given: a bool mask (B, 1, Q, keys), blocks, or spans of one row."""


def attention(query: Tensor, key: Tensor, value: Tensor, allowed: Allowed, scale: float | None = None) -> Tensor:
    """query (B, H, Q, d), key and value (B, Hkv, keys, d) -> (B, H, Q, d). The form of what is allowed says which kernel."""
    # One dtype for all: rotations in float32 lift queries and keys above values in bf16.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if not query.shape[
        2
    ]:  # keys and values are tied to the result all the same: every parameter has a gradient on every rank
        return query + key[:, :, :0].sum() + value[:, :, :0].sum()
    if isinstance(allowed, Spans):
        return _uncompiled(query, key, value, allowed, scale)
    if isinstance(allowed, BlockMask):
        return kernel(query)(query, key, value, block_mask=allowed, scale=scale, enable_gqa=True)
    return F.scaled_dot_product_attention(query, key, value, allowed, scale=scale, enable_gqa=True)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Allowed, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """`attention` as transformers calls it: -> (B, Q, H, d)."""
    return attention(query, key, value, attention_mask, scaling).transpose(1, 2), None


def within(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float | None) -> Tensor:
    """Each sample's attention to itself: query (1, H, Q, d), key and value (1, Hkv, keys, d) -> (1, H, Q, d)."""
    queries = [sum(piece.queries for piece in pieces) for pieces in spans.pieces]
    samples: Any = zip(query.split(queries, 2), key.split(spans.keys, 2), value.split(spans.keys, 2), strict=True)
    seen = []
    for (asked, keys, values), pieces in zip(samples, spans.pieces, strict=True):
        for q, (_, end, mask) in zip(asked.split([piece.queries for piece in pieces], 2), pieces, strict=True):
            k, v = keys[:, :, :end], values[:, :, :end]
            causal = mask is None
            seen.append(F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=True))
    return torch.cat(seen, 2)


_uncompiled: Any = torch.compiler.disable(within)


def kernel(query: Tensor) -> Any:
    """FlexAttention, compiled where nothing around it is: eager, it would hold a score for every pair of places."""
    if torch.compiler.is_compiling() or query.device.type == "cpu":
        return flex_attention
    return _compiled()


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


AttentionInterface.register(NAME, attend)
