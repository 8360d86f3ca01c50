"""The order of an epoch, a pure function of (manifest, settings, seed, epoch), and each rank's share of each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from jala_ray.config import DataConfig
from jala_ray.types import Domain, ManifestError, Split

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class PlanRow:
    """One sample to be read. Everything random about it is keyed by (seed, epoch, plan_row)."""

    epoch: int
    plan_row: int
    """Position in the epoch's order."""
    index: int
    """Row of the manifest."""


def eligible(index: pa.Table, data: DataConfig, split: Split, domain: Domain | None = None) -> np.ndarray:
    """Manifest rows (n,) int64 that a plan may hold: of this split (and domain), with video, with labels if asked for.

    `index` is `Manifest.index`. Raises `ManifestError` when a training split has none.
    """
    keep = equals(index["split"], split) & index["has_video"].to_numpy()
    if domain is not None:
        keep &= equals(index["domain"], domain)
    if data.labels == "labelled_only":
        keep &= _any_true(index["left_labelled"]) | _any_true(index["right_labelled"])
    rows = np.flatnonzero(keep)
    if not len(rows) and domain is None:
        expected = f"at least one row of split {split!r} with a video"
        raise ManifestError("data.manifest", data.manifest, expected, f"It has {index.num_rows} rows in all.")
    return rows.astype(np.int64)


def equals(column: pa.ChunkedArray, value: str) -> np.ndarray:
    """(n,) bool; the column is dictionary-encoded, so only its few words are compared."""
    words = column.unify_dictionaries().combine_chunks()
    match = np.array([word == value for word in words.dictionary.to_pylist()])
    return match[words.indices.to_numpy()]


def _any_true(lists: pa.ChunkedArray) -> np.ndarray:
    """(n,) bool: which rows of a list<bool> column hold a true value."""
    column = lists.combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).astype(bool)
    found = np.zeros(len(column), bool)
    found[column.value_parent_indices().to_numpy()[values]] = True
    return found


@dataclass(frozen=True, eq=False)
class Plan:
    """The rows to be read, step by step. Step s of an epoch consumes plan rows [sB, (s+1)B), whatever the number of ranks."""

    rows: np.ndarray
    """(n,) eligible manifest rows."""
    batch: int
    """B, sequences of one step over all ranks."""
    seed: int
    shuffle: bool = True
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __reduce__(self):
        return type(self), (self.rows, self.batch, self.seed, self.shuffle)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch)

    def order(self, epoch: int) -> np.ndarray:
        """(n,) manifest rows in the order of this epoch. The last one asked for stays in memory."""
        if not self.shuffle:
            return self.rows
        if epoch not in self._orders:
            self._orders.clear()
            shuffled = np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
            self._orders[epoch] = self.rows[shuffled]
        return self._orders[epoch]

    def share(self, step: int, rank: int, world: int) -> list[PlanRow]:
        """Rank `rank`'s rows of global step `step` (from 0, epochs one after another): at most ceil(B / world) of them.

        The last step of an epoch holds what is left, so that some ranks may get fewer rows, or none.
        """
        epoch, within = divmod(step, self.steps_per_epoch)
        order = self.order(epoch)
        size = -(-self.batch // world)
        first = within * self.batch + rank * size
        last = min(first + size, (within + 1) * self.batch, len(order))
        return [PlanRow(epoch, i, int(order[i])) for i in range(first, last)]
