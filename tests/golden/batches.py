"""Micro-batches of this tree and of older ones, in one form: columns by name, as they are called now.

A column that is gone gives, from the base's batch, the columns that have its facts now, by a derivation of this file's own; so the base's
facts are still compared, bit by bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def columns(batch: Any) -> dict[str, Tensor]:
    """Of a `Batch`, or of the dictionary that it once was. Raises `ValueError` for facts that the columns of now cannot hold."""
    found = dict(batch) if isinstance(batch, dict) else batch.tensors()
    if "block" in found:
        found["lo"], found["hi"] = intervals(found["sample"], found.pop("block"))
    return found


def intervals(sample: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """What each token saw by the predicate over samples and chunks (B, T), which must be one interval [lo, hi) of its row."""
    place = torch.arange(sample.shape[1])
    earlier = place[None, :] <= place[:, None]
    one_chunk = (block[:, :, None] == block[:, None, :]) & (block >= 0)[:, :, None]
    seen = (sample[:, :, None] == sample[:, None, :]) & (earlier | one_chunk)
    lo = seen.int().argmax(-1)
    hi = sample.shape[1] - seen.flip(-1).int().argmax(-1)
    if not torch.equal(seen.sum(-1), hi - lo):
        raise ValueError("block: a token sees keys that are no interval of its row")
    return lo, hi
