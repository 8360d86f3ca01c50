"""Micro-batches of this tree and of older ones, in one form: columns by name, as they are called now.

A column that is gone gives, from the base's batch, the columns that have its facts now, by a derivation of this file's own; so the base's
facts are still compared, bit by bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def columns(batch: Any, reads: str = "scored", samples: bool = False) -> dict[str, Any]:
    """Of a `Batch`, or of the dictionary that it once was, in a run whose losses read last hidden states where `reads` says; with `samples`
    as `by_sample` gives them.

    Raises `ValueError` for facts that the columns of now cannot hold.
    """
    found = _columns(batch, reads)
    return by_sample(found) if samples else found


LISTS = ("image", "state", "scored", "text", "pair", "read")


def by_sample(found: dict[str, Tensor]) -> dict[str, Any]:
    """Token columns sample after sample, wherever each lies: what order and packing must leave alone."""
    rest, sample = dict(found), found["sample"]
    rest.pop("deep", None)
    flags = {name: torch.zeros(sample.numel(), dtype=torch.bool) for name in LISTS}
    for name, flag in flags.items():
        flag[rest.pop(f"{name}_at")] = True
    tokens = {name: rest.pop(name) for name, column in found.items() if name in rest and column.shape == sample.shape}
    tokens |= {f"{name}_at": flag.view_as(sample) for name, flag in flags.items()}
    place = torch.arange(sample.shape[1]).expand_as(sample)
    start = place - tokens["position"]
    tokens |= {name: tokens[name] - start for name in ("lo", "hi")}
    numbers = range(len(found["weight"]))
    picture = torch.full_like(sample, -1)
    picture.view(-1)[found["image_at"]] = rest.pop("picture")
    tokens["picture"] = picture
    return rest | {f"sample {i}": {name: column[sample == i] for name, column in tokens.items()} for i in numbers}


def _columns(batch: Any, reads: str) -> dict[str, Tensor]:
    if not isinstance(batch, dict):
        return dict(batch.tensors())
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
