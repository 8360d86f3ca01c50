"""From laid-out samples to one batch: packing, padding, and the frames the perceivers read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jala_ray.batch import SIGNALS, Batch
from jala_ray.config import TrainConfig
from jala_ray.data.samples.layout import TOKEN_COLUMNS, Laid
from jala_ray.types import UserError

_FLAGS = ("state", "scored", "read")
"""Columns of a sample that say yes or no; a batch has them as lists of places."""
_STORED = tuple(name for name in TOKEN_COLUMNS if name not in _FLAGS)
"""Its other columns; a batch has them as they are, but `block` as `hi`."""


def micro_batches(lengths: Sequence[int], train: TrainConfig, packing: bool) -> list[range]:
    """Samples of each micro-batch, in the given order: as many as `train.micro_batch` and `train.micro_tokens` allow, at least one.

    Tokens are those that the pass has: of a padded batch the longest sample's for each.
    """
    groups: list[range] = []
    for i in range(len(lengths)):
        first = groups[-1].start if groups else 0
        group = lengths[first : i + 1]
        tokens = sum(group) if packing else max(group) * len(group)
        if groups and len(group) <= train.micro_batch and tokens <= train.micro_tokens:
            groups[-1] = range(first, i + 1)
        else:
            groups.append(range(i, i + 1))
    return groups


def deep_ones(samples: Sequence[Laid]) -> list[bool]:
    """Which samples have a last hidden state that a loss reads; if none, the shortest stands for one, so that every block has work."""
    deep = [bool(s.columns["read"].any()) for s in samples]
    if not any(deep):
        deep[min(range(len(samples)), key=lambda i: len(samples[i]))] = True
    return deep


def seen_until(sample: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Samples and chunk ids (B, T), -1 outside -> (B, T) the first place of the row past the token and past its chunk.

    A chunk is a run of one id in a sample: tokens of one id with others between them would be two chunks.
    """
    rows, width = block.shape
    last = np.ones(block.shape, bool)
    last[:, :-1] = (block[:, 1:] != block[:, :-1]) | (sample[:, 1:] != sample[:, :-1])
    ends = np.flatnonzero(last) + 1
    end = np.repeat(ends, np.diff(ends, prepend=0)).reshape(rows, width) - width * np.arange(rows)[:, None]
    return np.where(block >= 0, end, np.arange(width) + 1)


def collate(samples: Sequence[Laid], *, packing: bool, pad_multiple: int = 1) -> Batch:
    """Pack `samples` into one row, or pad them to a row each; every sample's numbers are the same wherever it lies.

    In a packed row those samples come first whose last hidden states a loss reads; the others need no block above the tapped one. Their
    numbers in the batch are those of `samples`, however they lie.
    """
    lengths, deep = [len(s) for s in samples], deep_ones(samples)
    order = sorted(range(len(samples)), key=lambda i: not deep[i])
    rows = [order] if packing else [[i] for i in range(len(samples))]
    width = max(sum(lengths[i] for i in row) for row in rows)
    width = -(-width // pad_multiple) * pad_multiple
    grid = _padding(len(rows), width)
    pairs_before = np.cumsum([0, *(len(s.pairs) for s in samples)])
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            end = start + lengths[i]
            for name, column in _placed(samples[i], i, start, int(pairs_before[i])).items():
                grid[name][r, start:end] = column
            start = end
        grid["lo"][r, start:] = start

    grid["hi"] = seen_until(grid["sample"], grid.pop("block"))
    flags = {name: grid.pop(name) for name in _FLAGS}
    flags |= {"image": grid["image_k"] >= 0, "text": grid["text_target"] >= 0, "pair": grid["pair"] >= 0}
    lists = {f"{name}_at": np.flatnonzero(flag) for name, flag in flags.items()}
    columns = {name: torch.from_numpy(column) for name, column in (grid | lists).items()}
    columns["picture"] = torch.from_numpy(_pictures(samples, grid, lists["image_at"]))
    columns["deep"] = torch.tensor([sum(lengths[i] for i in row if deep[i]) for row in rows])
    columns["weight"] = torch.tensor([s.weight for s in samples], dtype=torch.float32)
    columns["plan_row"] = torch.tensor([s.plan_row for s in samples])
    columns["images"] = torch.from_numpy(np.concatenate([s.images for s in samples]))
    signals = {SIGNALS + name: torch.from_numpy(array) for name, array in _signals(samples).items()}
    return Batch.from_tensors(columns | _perceiver_inputs(samples) | signals)


def _pictures(samples: Sequence[Laid], grid: dict[str, np.ndarray], at: np.ndarray) -> np.ndarray:
    """(M,) int64: which of the batch's pictures each picture token is of. A picture is a run of `image_k` from 0 on."""
    sample, k = grid["sample"].reshape(-1)[at], grid["image_k"].reshape(-1)[at]
    counts = [len(s.images) for s in samples]
    if len(counts) == sum(counts):  # one per sample, as mostly
        return sample
    first = k == 0
    begun = np.flatnonzero(first)
    place = np.cumsum(first) - 1
    of = sample[begun]
    # A sample's pictures lie in one piece of a row.
    before = np.array([np.flatnonzero(of == number)[0] for number in of], np.int64)
    within = np.arange(len(begun)) - before
    return (np.cumsum([0, *counts])[of] + within)[place]


def _signals(samples: Sequence[Laid]) -> dict[str, np.ndarray]:
    """By name (S, ...). A sample that only fills the batch may lack one, and has zeros. Raises `UserError` where shapes or types differ."""
    found = {}
    for name in sorted({name for s in samples for name in s.signals}):
        given = [s.signals.get(name) for s in samples]
        kinds = {(array.dtype.name, array.shape) for array in given if array is not None}
        lacking = any(array is None and s.weight > 0 for array, s in zip(given, samples, strict=True))
        if len(kinds) != 1 or lacking:
            shown = [*(f"{dtype} {list(shape)}" for dtype, shape in sorted(kinds)), *(["none"] if lacking else [])]
            raise UserError(f"signal {name} of a batch", ", ".join(shown), "one dtype and shape in all samples")
        ((dtype, shape),) = kinds
        found[name] = np.stack([np.zeros(shape, dtype) if array is None else array for array in given])
    return found


def _padding(rows: int, width: int) -> dict[str, np.ndarray]:
    """Columns (rows, width) and flags of padding alone."""
    void = dict.fromkeys((*_STORED, "sample"), -1) | dict.fromkeys(("ids", "position", "lo", *_FLAGS), 0)
    return {name: np.full((rows, width), value, np.int64) for name, value in void.items()}


def _placed(sample: Laid, number: int, start: int, pairs_before: int) -> dict[str, np.ndarray | int]:
    """Columns and flags of a sample that lies from `start` on in its row."""
    columns = sample.columns
    pair = columns["pair"]
    return {
        **{name: columns[name] for name in (*_STORED, *_FLAGS)},
        "sample": number,
        "position": np.arange(len(sample)),
        "pair": np.where(pair >= 0, pair + pairs_before, -1),
        "lo": start,
    }


def _perceiver_inputs(samples: Sequence[Laid]) -> dict[str, Tensor]:
    """Those fields of `PerceiverInputs` that there are."""
    given = [s.pictures for s in samples]
    if "pair_features" in given[0]:
        stacks = [pictures["pair_features"] for pictures in given]
        stills = [pictures["still_features"] for pictures in given]
        return {
            "first_features": torch.from_numpy(np.stack([f[0] for f in stacks])),
            "pair_features": torch.from_numpy(np.concatenate([f[1:] for f in stacks])),
            "still_features": torch.from_numpy(np.concatenate(stills)),
        }
    if not samples[0].boundaries:
        return {}
    pairs, first, base = [], [], 0
    for s in samples:
        row = {boundary: base + j for j, boundary in enumerate(s.boundaries)}
        pairs += [(row[time], row[time + 1]) for time in s.pairs]
        first.append((row[0], row[0]))
        base += len(s.boundaries)
    columns = {
        "pairs": torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
        "first": torch.tensor(first, dtype=torch.int64),
    }
    there = {"frames": "frames", "features": "frame_features"}
    names = [name for name in there if name in given[0]]
    return columns | {there[n]: torch.from_numpy(np.concatenate([pictures[n] for pictures in given])) for n in names}
