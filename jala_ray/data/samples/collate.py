"""From laid-out samples to one batch: packing, padding, and the frames the perceivers read."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jala_ray.batch import Batch
from jala_ray.data.samples.layout import TOKEN_COLUMNS, Sequence
from jala_ray.types import UserError

_FLAGS = ("state", "scored", "read")
"""Columns of a sample that say yes or no; a batch has them as lists of places."""
_STORED = tuple(name for name in TOKEN_COLUMNS if name not in _FLAGS)
"""Its other columns; a batch has them as they are, but `block` as `hi`."""


@dataclass
class Laid:
    """One sample, ready for a batch."""

    plan_row: int
    weight: float
    sequence: Sequence
    image: np.ndarray
    """(3, H, W) uint8, v_1 for the backbone."""
    boundaries: list[int]
    """Boundary index (0..N) of every entry of `frames` (or `features`)."""
    frames: np.ndarray | None = None
    """(F, 3, h, w) uint8 for the perceivers' encoder."""
    features: np.ndarray | None = None
    """(F, P, Dv) features of the same boundaries (per-frame encoders)."""
    pair_features: np.ndarray | None = None
    """(1 + C, P, Dv): features of (v_0, v_0), then of every pair of the sequence (pair encoders)."""
    still_features: np.ndarray | None = None
    """(C, P, Dv): features of (v_t, v_t) for the same pairs; comes with `pair_features`."""


def first_fit(lengths: Seq[int], capacity: int) -> list[list[int]]:
    """Pack in the given order: every sample goes to the first row with room. Deterministic."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i, length in enumerate(lengths):
        if length > capacity:
            raise UserError("data.max_tokens", capacity, f">= {length}, the length of the longest sample")
        slot = next((r for r, free in enumerate(room) if free >= length), None)
        if slot is None:
            rows.append([])
            room.append(capacity)
            slot = len(rows) - 1
        rows[slot].append(i)
        room[slot] -= length
    return rows


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


def collate(samples: Seq[Laid], *, packing: bool, max_tokens: int, pad_multiple: int = 1) -> Batch:
    """Pack or pad `samples` into one batch; every sample's numbers are the same wherever it lies."""
    lengths = [len(s.sequence) for s in samples]
    rows = first_fit(lengths, max_tokens) if packing else [[i] for i in range(len(samples))]
    width = max(sum(lengths[i] for i in row) for row in rows)
    width = -(-width // pad_multiple) * pad_multiple
    grid = _padding(len(rows), width)
    pairs_before = np.cumsum([0, *(len(s.sequence.pairs) for s in samples)])
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
    columns = {name: torch.from_numpy(column) for name, column in grid.items()}
    columns |= {f"{name}_at": torch.from_numpy(np.flatnonzero(flag)) for name, flag in flags.items()}
    columns["weight"] = torch.tensor([s.weight for s in samples], dtype=torch.float32)
    columns["plan_row"] = torch.tensor([s.plan_row for s in samples])
    columns["images"] = torch.from_numpy(np.stack([s.image for s in samples]))
    return Batch.from_tensors(columns | _perceiver_inputs(samples))


def _padding(rows: int, width: int) -> dict[str, np.ndarray]:
    """Columns (rows, width) and flags of padding alone."""
    void = dict.fromkeys((*_STORED, "sample"), -1) | dict.fromkeys(("ids", "position", "lo", *_FLAGS), 0)
    return {name: np.full((rows, width), value, np.int64) for name, value in void.items()}


def _placed(sample: Laid, number: int, start: int, pairs_before: int) -> dict[str, np.ndarray | int]:
    """Columns and flags of a sample that lies from `start` on in its row."""
    columns = sample.sequence.columns
    pair = columns["pair"]
    return {
        **{name: columns[name] for name in (*_STORED, *_FLAGS)},
        "sample": number,
        "position": np.arange(len(sample.sequence)),
        "pair": np.where(pair >= 0, pair + pairs_before, -1),
        "lo": start,
    }


def _perceiver_inputs(samples: Seq[Laid]) -> dict[str, Tensor]:
    """Those fields of `PerceiverInputs` that there are."""
    if samples[0].pair_features is not None:
        stacks = [s.pair_features for s in samples if s.pair_features is not None]
        stills = [s.still_features for s in samples if s.still_features is not None]
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
        pairs += [(row[time], row[time + 1]) for time in s.sequence.pairs]
        first.append((row[0], row[0]))
        base += len(s.boundaries)
    columns = {
        "pairs": torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
        "first": torch.tensor(first, dtype=torch.int64),
    }
    name = "frames" if samples[0].frames is not None else "frame_features"
    arrays = [s.frames if s.frames is not None else s.features for s in samples]
    return columns | {name: torch.from_numpy(np.concatenate([a for a in arrays if a is not None]))}
