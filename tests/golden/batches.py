"""Micro-batches of this tree and of older ones, in one form: columns by name, as they are called now.

A column that is gone gives, from the base's batch, the columns that have its facts now, by a derivation of this file's own; so the base's
facts are still compared, bit by bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def columns(batch: Any, reads: str = "scored") -> dict[str, Tensor]:
    """Of a `Batch`, or of the dictionary that it once was, in a run whose losses read last hidden states where `reads` says.

    Raises `ValueError` for facts that the columns of now cannot hold.
    """
    if not isinstance(batch, dict):
        return batch.tensors()
    found = dict(batch)
    found["lo"], found["hi"] = intervals(found["sample"], found.pop("block"))
    scored = found.pop("scored")
    found["picture"] = found["sample"][found["image_k"] >= 0]
    there = {"scored": scored, "state": found.pop("state")}
    there |= {"image": found["image_k"] >= 0, "text": found["text_target"] >= 0, "pair": found["pair"] >= 0}
    motion = {
        "scored": scored,
        "before": scored.roll(-1, 1),
        "aligned": there["pair"],
        "none": torch.zeros_like(scored),
    }
    there["read"] = motion[reads] | there["text"]
    return found | {f"{name}_at": flag.flatten().nonzero()[:, 0] for name, flag in there.items()}


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
