"""A micro-batch in two, where it does not fit into memory: what `collate` would have made of each half's samples, from the batch alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jala_ray.batch import SIGNALS, Batch

_COLUMNS = ("ids", "sample", "position", "lo", "hi", "hand", "k", "image_k", "target", "pair", "text_target")
_LISTS = ("image_at", "state_at", "scored_at", "text_at", "pair_at", "read_at")
_OF_SAMPLES = ("weight", "plan_row", "first_features")
_OF_PAIRS = ("pairs", "pair_features", "still_features")
_OF_FRAMES = ("frames", "frame_features")


def fitting(batch: Batch, tokens: int | None, pad_multiple: int) -> list[Batch]:
    """The batch, or parts of whole samples, halved until each has at most so many tokens or one sample. None: as it is."""
    if tokens is None or batch.ids.numel() <= tokens or len(batch.weight) == 1:
        return [batch]
    return [part for half in halves(batch, pad_multiple) for part in fitting(half, tokens, pad_multiple)]


def halves(batch: Batch, pad_multiple: int = 1) -> tuple[Batch, Batch]:
    """Its first samples and its last, of about as many tokens. It has at least two; `pad_multiple` is what it was collated with."""
    before = torch.tensor(_lengths(batch)).cumsum(0)
    count = min(int((2 * before < before[-1]).sum()) + 1, len(before) - 1)
    return _part(batch, range(count), pad_multiple), _part(batch, range(count, len(before)), pad_multiple)


def _lengths(batch: Batch) -> list[int]:
    """Of the samples, tokens."""
    owner = batch.sample.flatten()
    return torch.bincount(owner[owner >= 0], minlength=len(batch.weight)).tolist()


def _part(batch: Batch, chosen: range, pad_multiple: int) -> Batch:
    """Samples `chosen`, numbered from 0."""
    rows, deep = _rows(batch, chosen)
    source, lo = (grid.to(batch.ids.device) for grid in _places(batch, rows, pad_multiple))
    given, real = batch.tensors(), source >= 0
    picture = torch.full_like(source.new_empty(batch.ids.numel()), -1)
    picture[batch.image_at] = batch.picture
    columns = {name: _moved(given[name], source) for name in _COLUMNS}
    lists = {name: _list(given[name], batch.ids.numel(), source) for name in _LISTS}
    images, pairs, frames = _images(batch, chosen), _pairs(batch, chosen), _frames(batch, chosen)

    made = columns | lists | {"deep": torch.tensor(deep)}
    for name in ("ids", "position"):
        made[name] = columns[name].where(real, 0)
    made["sample"] = (columns["sample"] - chosen.start).where(real, -1)
    made["pair"] = (columns["pair"] - pairs.start).where(columns["pair"] >= 0, -1)
    place = torch.arange(source.shape[1], device=source.device).expand_as(source)
    made["lo"], made["hi"] = lo, (columns["hi"] - columns["lo"] + lo).where(real, place + 1)
    made["picture"] = picture[source.flatten()[lists["image_at"]]] - images.start
    made["images"] = batch.images[images]
    own = slice(chosen.start, chosen.stop)
    made |= {name: given[name][own] for name in given if name in _OF_SAMPLES or name.startswith(SIGNALS)}
    made |= {name: given[name][pairs] for name in _OF_PAIRS if name in given}
    made |= {name: given[name][frames] for name in _OF_FRAMES if name in given}
    if batch.first is not None:
        made |= {"first": batch.first[own] - frames.start, "pairs": made["pairs"] - frames.start}
    return Batch.from_tensors(made)


def _rows(batch: Batch, chosen: range) -> tuple[list[list[int]], list[int]]:
    """Samples by row, in their order there, and each row's tokens of deep samples (`collate`)."""
    lengths, read = _lengths(batch), set(batch.sample.flatten()[batch.read_at].tolist())
    deep = {i for i in chosen if i in read} or {min(chosen, key=lambda i: lengths[i])}
    packed = len(batch.ids) == 1
    rows = [sorted(chosen, key=lambda i: i not in deep)] if packed else [[i] for i in chosen]
    return rows, [sum(lengths[i] for i in row if i in deep) for row in rows]


def _places(batch: Batch, rows: Sequence[Sequence[int]], pad_multiple: int) -> tuple[Tensor, Tensor]:
    """(B, T) each: place among the batch's B * T of every token, -1 for padding; and the column `lo`."""
    owner, lengths = batch.sample.flatten().cpu(), _lengths(batch)
    begins = ((owner >= 0) & (batch.position.flatten().cpu() == 0)).nonzero()[:, 0]
    begin = dict(zip(owner[begins].tolist(), begins.tolist(), strict=True))
    width = max(sum(lengths[i] for i in row) for row in rows)
    source = torch.full((len(rows), -(-width // pad_multiple) * pad_multiple), -1)
    lo = torch.zeros_like(source)
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            end = start + lengths[i]
            source[r, start:end] = torch.arange(begin[i], begin[i] + lengths[i])
            lo[r, start:] = start
            start = end
        lo[r, start:] = start
    return source, lo


def _moved(column: Tensor, source: Tensor) -> Tensor:
    return column.flatten()[source.clamp(min=0)].where(source >= 0, -1)


def _list(at: Tensor, size: int, source: Tensor) -> Tensor:
    """Where the places `at` among `size` are now."""
    flag = torch.zeros(size, dtype=torch.bool, device=at.device)
    flag[at] = True
    return (flag[source.clamp(min=0)] & (source >= 0)).flatten().nonzero()[:, 0]


def _images(batch: Batch, chosen: range) -> slice:
    if len(batch.images) == len(batch.weight):
        return slice(chosen.start, chosen.stop)
    return _between(_owners(len(batch.images), batch.picture, batch.sample.flatten()[batch.image_at]), chosen)


def _pairs(batch: Batch, chosen: range) -> slice:
    if batch.pairs is not None and batch.first is not None:
        begins, of = batch.first[:, 0].contiguous(), batch.pairs[:, 0].contiguous()
        return _between(torch.searchsorted(begins, of, right=True) - 1, chosen)
    if batch.pair_features is None:
        return slice(0, 0)
    at = batch.pair_at
    return _between(_owners(len(batch.pair_features), batch.pair.flatten()[at], batch.sample.flatten()[at]), chosen)


def _frames(batch: Batch, chosen: range) -> slice:
    """A sample's frames lie together, its first one first."""
    frames = batch.frames if batch.frames is not None else batch.frame_features
    if batch.first is None or frames is None:
        return slice(0, 0)
    begins = [*batch.first[:, 0].tolist(), len(frames)]
    return slice(begins[chosen.start], begins[chosen.stop])


def _owners(count: int, of: Tensor, sample: Tensor) -> Tensor:
    """(count,) sample of each picture or pair, which tokens `of` (M,) of samples (M,) name; one that none names is of the one before."""
    owner = torch.zeros(count, dtype=torch.int64, device=of.device)
    owner[of] = sample
    return owner.cummax(0).values if count else owner


def _between(owner: Tensor, chosen: range) -> slice:
    """Those of samples `chosen`: owners never fall."""
    return slice(int((owner < chosen.start).sum()), int((owner < chosen.stop).sum()))
