"""Labelled motion chunks of manifests, for training the tokenizer: a Ray-free map stage and the choice of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jala_ray.data.manifest import Manifest
from jala_ray.hands.resample import chunk_features
from jala_ray.types import CHUNK_FRAMES, FEATURE_DIM, Hand, Split


@dataclass(frozen=True)
class ManifestRow:
    manifest: str
    index: int


def rows_with_labels(manifests: tuple[str, ...], split: Split, max_chunks: int, seed: int) -> list[ManifestRow]:
    """Rows of a split that have labelled chunks, each clip once (whatever its task types), in a keyed random order.

    Stops where `max_chunks` chunks are reached.
    """
    found: list[tuple[ManifestRow, int]] = []
    for path in manifests:
        index = Manifest(path).index
        seen: set[str] = set()
        columns = (index[name].to_pylist() for name in ("clip_id", "split", "left_labelled", "right_labelled"))
        for i, (clip, its_split, left, right) in enumerate(zip(*columns, strict=True)):
            chunks = sum(left) + sum(right)
            if its_split == split and chunks and clip not in seen:
                seen.add(clip)
                found.append((ManifestRow(path, i), chunks))
    order = np.random.default_rng(seed).permutation(len(found))
    chosen: list[ManifestRow] = []
    total = 0
    for i in order:
        if total >= max_chunks:
            break
        row, chunks = found[int(i)]
        chosen.append(row)
        total += chunks
    return chosen


def read_chunks(rows: list[ManifestRow]) -> dict[str, np.ndarray]:
    """`features` (C, 15, 99) float32, `side` (C,) int64, `beta` (C, 10) float32 of all labelled chunks of some rows."""
    features: list[np.ndarray] = [np.zeros((0, CHUNK_FRAMES, FEATURE_DIM), np.float32)]
    side: list[np.ndarray] = [np.zeros(0, np.int64)]
    beta: list[np.ndarray] = [np.zeros((0, 10), np.float32)]
    manifests = {path: Manifest(path) for path in {row.manifest for row in rows}}
    for row in rows:
        clip = manifests[row.manifest].clip(row.index)
        motion, labelled = chunk_features(clip)
        for hand in Hand:
            mine = motion[hand][labelled[hand]]
            features.append(mine)
            side.append(np.full(len(mine), int(hand)))
            beta.append(np.broadcast_to(np.asarray(clip.hands[hand].beta, np.float32), (len(mine), 10)))
    return {"features": np.concatenate(features), "side": np.concatenate(side), "beta": np.concatenate(beta)}
