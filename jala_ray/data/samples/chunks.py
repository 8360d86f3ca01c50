"""Labelled motion chunks of manifests, for training the tokenizer: a Ray-free map stage and the choice of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jala_ray.data.manifest.examine import refuse_contradictions
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.sampling.catalogue import equals
from jala_ray.hands.resample import chunk_features
from jala_ray.storage import StorageOptions
from jala_ray.types import CHUNK_FRAMES, FEATURE_DIM, Hand, Split


@dataclass(frozen=True)
class ManifestRow:
    manifest: str
    index: int
    options: StorageOptions | None = None
    """How the manifest is reached."""


@dataclass(frozen=True, eq=False)
class ManifestRows(Sequence[ManifestRow]):
    """Many rows of a few manifests, in an order of their own; a slice is one too."""

    manifests: tuple[str, ...]
    which: np.ndarray
    """(R,) place in `manifests`."""
    row: np.ndarray
    """(R,) row of that manifest."""
    options: StorageOptions | None = None

    def __len__(self) -> int:
        return len(self.row)

    @overload
    def __getitem__(self, at: int) -> ManifestRow: ...
    @overload
    def __getitem__(self, at: slice) -> ManifestRows: ...
    def __getitem__(self, at: int | slice) -> ManifestRow | ManifestRows:
        if isinstance(at, slice):
            return ManifestRows(self.manifests, self.which[at], self.row[at], self.options)
        return ManifestRow(self.manifests[self.which[at]], int(self.row[at]), self.options)

    def digest(self) -> str:
        """Of the rows' contents in their order, wherever they lie."""
        content = np.zeros((len(self), 2), np.int64)
        for number, path in enumerate(self.manifests):
            mine = self.which == number
            places = Manifest(path, self.options).places
            content[mine] = np.stack([places[name][self.row[mine]] for name in ("row_crc", "row_size")], axis=1)
        return hashlib.blake2b(content.tobytes(), digest_size=8).hexdigest()


def rows_with_labels(
    manifests: tuple[str, ...], split: Split, max_chunks: int, seed: int, options: StorageOptions | None = None
) -> ManifestRows:
    """Rows of a split that have labelled chunks, each clip once (whatever its task types), in a keyed random order.

    Stops where `max_chunks` chunks are reached. Raises `ManifestError` where a Parquet file and its rows were changed apart.
    """
    rows: list[np.ndarray] = [np.zeros(0, np.int64)]
    chunks: list[np.ndarray] = [np.zeros(0, np.int64)]
    for path in manifests:
        manifest = Manifest(path, options)
        refuse_contradictions(manifest, seed)
        table = manifest.index
        labelled = _count_true(table["left_labelled"]) + _count_true(table["right_labelled"])
        keep = np.flatnonzero(equals(table["split"], split) & (labelled > 0))
        clips = table["clip_id"].take(pa.array(keep)).combine_chunks().dictionary_encode("encode").indices.to_numpy()
        keep = keep[np.sort(np.unique(clips, return_index=True)[1])]
        rows.append(keep)
        chunks.append(labelled[keep])
    which = np.repeat(np.arange(len(manifests)), [len(found) for found in rows[1:]])
    index, counts = np.concatenate(rows), np.concatenate(chunks)
    order = np.random.default_rng(seed).permutation(len(index))
    before = np.cumsum(counts[order]) - counts[order]
    chosen = order[before < max_chunks]
    return ManifestRows(manifests, which[chosen], index[chosen], options)


def _count_true(lists: pa.ChunkedArray) -> np.ndarray:
    """(R,) int64: true values in each row of a list<bool> column."""
    column = lists.combine_chunks()
    values = pc.fill_null(column.flatten(), False).to_numpy(zero_copy_only=False)
    return np.bincount(column.value_parent_indices().to_numpy()[values], minlength=len(column))


def read_chunks(rows: Sequence[ManifestRow]) -> dict[str, np.ndarray]:
    """`features` (C, 15, 99) float32, `side` (C,) int64, `beta` (C, 10) float32 of all labelled chunks of some rows."""
    features: list[np.ndarray] = [np.zeros((0, CHUNK_FRAMES, FEATURE_DIM), np.float32)]
    side: list[np.ndarray] = [np.zeros(0, np.int64)]
    beta: list[np.ndarray] = [np.zeros((0, 10), np.float32)]
    manifests = {key: Manifest(*key) for key in {(row.manifest, row.options) for row in rows}}
    for row in rows:
        clip = manifests[row.manifest, row.options].clip(row.index)
        motion, labelled = chunk_features(clip)
        for hand in Hand:
            mine = motion[hand][labelled[hand]]
            features.append(mine)
            side.append(np.full(len(mine), int(hand)))
            beta.append(np.broadcast_to(np.asarray(clip.hands[hand].beta, np.float32), (len(mine), 10)))
    return {"features": np.concatenate(features), "side": np.concatenate(side), "beta": np.concatenate(beta)}
