"""The order of an epoch, a pure function of (manifest, mixture, seed, epoch), and each rank's share of each step.

Step s of an epoch consumes plan rows [sB, (s+1)B), whatever the number of ranks; `ranks.deal` says which rank takes which of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from jala_ray.config import DataConfig
from jala_ray.data.manifest.places import Catalogue, RowAddress, address
from jala_ray.data.sampling.mixture import apportion, cell_shares
from jala_ray.data.sampling.ranks import deal


@dataclass(frozen=True)
class PlanRow:
    """One sample to be read. Everything random about it is keyed by (seed, epoch, plan_row)."""

    epoch: int
    plan_row: int
    """Position in the epoch's order."""
    index: int
    """Row of the manifest."""
    address: RowAddress | None = None
    """Where that row lies."""


def plan_rows(places: np.ndarray, files: tuple[str, ...], epoch: int, numbers: Iterable[int]) -> list[PlanRow]:
    """Plan rows of an epoch by their numbers, from their entries of `places.PLACE`."""
    return [
        PlanRow(epoch, int(number), int(place["row"]), address(place, files))
        for number, place in zip(numbers, places, strict=True)
    ]


def rows_digest(epoch: int, rows: np.ndarray) -> int:
    """Digest of a set of an epoch's plan rows, in any order: the wrapping sum of a hash of each (signed 64 bits).

    Ranks and steps can therefore add up theirs: the sum depends on the rows alone, not on who trained which.
    """
    mixed = (np.asarray(rows, np.int64).astype(np.uint64) + np.uint64(epoch << 40)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finaliser of SplitMix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return int((mixed ^ (mixed >> np.uint64(31))).sum(dtype=np.uint64).astype(np.int64))


@dataclass(frozen=True)
class Span:
    """Plan rows `first` .. `last` - 1 of an epoch."""

    epoch: int
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class Steps:
    """Which plan rows each step consumes; arithmetic alone, so every process can have it. An epoch's last step holds what is left."""

    rows: int
    """Of an epoch."""
    batch: int
    """B, sequences of one step over all ranks."""

    @property
    def per_epoch(self) -> int:
        return -(-self.rows // self.batch)

    def span(self, step: int) -> Span:
        """The rows of global step `step` (from 0, epochs one after another)."""
        epoch, within = divmod(step, self.per_epoch)
        first = within * self.batch
        return Span(epoch, first, min(first + self.batch, self.rows))


def rank_rows(places: np.ndarray, files: tuple[str, ...], span: Span, rank: int, world: int) -> list[PlanRow]:
    """Rank `rank`'s rows of a step, in plan order: at most ceil(B / world), maybe none. `places` (len(span),) of `places.PLACE`."""
    mine = np.flatnonzero(deal(places, world) == rank)
    return plan_rows(places[mine], files, span.epoch, span.first + mine)


@dataclass(frozen=True, eq=False)
class Plan:
    """The rows to be read, step by step."""

    catalogue: Catalogue
    batch: int
    seed: int
    data: DataConfig = field(default_factory=DataConfig)
    shuffle: bool = True
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __reduce__(self):
        return type(self), (self.catalogue, self.batch, self.seed, self.data, self.shuffle)

    @cached_property
    def counts(self) -> np.ndarray | None:
        """(C,) rows of every mixture cell in an epoch; None: each row once."""
        data, catalogue = self.data, self.catalogue
        if not (data.source_weights or data.task_weights or data.epoch_rows):
            return None
        sizes = np.bincount(catalogue.cell, minlength=len(catalogue.cells))
        used = np.flatnonzero(sizes)
        counts = np.zeros(len(sizes), np.int64)
        shares = cell_shares([catalogue.cells[c] for c in used], sizes[used], data)
        counts[used] = apportion(shares, data.epoch_rows or len(catalogue))
        return counts

    @cached_property
    def steps(self) -> Steps:
        return Steps(len(self.catalogue) if self.counts is None else int(self.counts.sum()), self.batch)

    @property
    def steps_per_epoch(self) -> int:
        return self.steps.per_epoch

    def order(self, epoch: int) -> np.ndarray:
        """(rows,) uint32 places in the catalogue, in the order of this epoch. The last one asked for stays in memory."""
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = self._order(epoch)
        return self._orders[epoch]

    def _order(self, epoch: int) -> np.ndarray:
        chosen = self._drawn(epoch)
        if not self.shuffle:
            return chosen
        rng = np.random.default_rng((self.seed, epoch))
        starts = _windows(self.catalogue.new_video, chosen, self.data.window, rng)
        return _shuffled(chosen, starts, rng)

    def _drawn(self, epoch: int) -> np.ndarray:
        """(rows,) uint32 places in the catalogue: each once, ascending, or the epoch's draw of every cell.

        A cell of n rows that gives c to the epoch gives each of them c // n times, and c % n drawn ones once more. All first copies come
        before all second ones, so that a row's copies share no window: a step would learn from one row twice.
        """
        if self.counts is None:
            return np.arange(len(self.catalogue), dtype=np.uint32)
        cell = self.catalogue.cell
        times = np.zeros(len(cell), np.uint32)
        for number, count in enumerate(self.counts):
            if count:
                members = np.flatnonzero(cell == number)
                whole, rest = divmod(int(count), len(members))
                times[members] += whole
                rng = np.random.default_rng((self.seed, epoch, number))
                times[rng.choice(members, rest, replace=False, shuffle=False)] += 1
        drawn = np.repeat(np.arange(len(cell), dtype=np.uint32), times)
        copy = np.arange(len(drawn), dtype=np.uint32)
        copy -= np.repeat(np.cumsum(times, dtype=np.uint32) - times, times)
        # Numbers this small are sorted by counting.
        return drawn[np.argsort(copy.astype(np.min_scalar_type(times.max(initial=0))), kind="stable")]

    def places(self, span: Span) -> np.ndarray:
        """(len(span),) of `places.PLACE`: the rows of a span of an epoch."""
        return self.catalogue.place[self.order(span.epoch)[span.first : span.last]]

    def sample(self, count: int, salt: int) -> list[PlanRow]:
        """Up to `count` rows of the first epoch, drawn alike likely by the plan's seed and `salt`, in their order."""
        rng = np.random.default_rng((self.seed, salt))
        chosen = np.sort(rng.choice(self.steps.rows, min(count, self.steps.rows), replace=False, shuffle=False))
        return plan_rows(self.catalogue.place[self.order(0)[chosen]], self.catalogue.files, 0, chosen)

    def share(self, step: int, rank: int, world: int) -> list[PlanRow]:
        """Rank `rank`'s rows of global step `step`; see `rank_rows`."""
        span = self.steps.span(step)
        return rank_rows(self.places(span), self.catalogue.files, span, rank, world)


def _windows(new_video: np.ndarray, chosen: np.ndarray, window: int, rng: np.random.Generator) -> np.ndarray:
    """(G,) where the windows begin in `chosen`, ascending: at every video, and within one every `window` rows.

    Where the first window of a longer run begins to count is drawn, so that its rows meet other neighbours in every epoch.
    """
    run = np.cumsum(new_video, dtype=np.uint32)[chosen]
    new = np.ones(len(chosen), bool)
    new[1:] = run[1:] != run[:-1]
    if window > 1:
        first = np.flatnonzero(new)
        lengths = np.diff(first, append=len(chosen))
        phase = rng.integers(window, size=len(first), dtype=np.uint32).astype(np.int64)
        phase[lengths <= window] = 0  # such a run is one window
        place = np.arange(len(chosen), dtype=np.int64)
        place += np.repeat(phase - first, lengths)
        new |= place % window == 0
    else:
        new[:] = True
    return np.flatnonzero(new).astype(np.uint32)


def _shuffled(chosen: np.ndarray, starts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`chosen` with its windows in random order."""
    lengths = np.diff(starts, append=np.uint32(len(chosen)))
    order = np.arange(len(starts), dtype=np.uint32)
    rng.shuffle(order)
    lengths = lengths[order]
    ends = np.cumsum(lengths, dtype=np.int64)
    # The j-th row of the result lies j - (end of the windows before) rows into its window.
    shift = starts[order].astype(np.int64) - (ends - lengths)
    return chosen[np.arange(len(chosen)) + np.repeat(shift, lengths)]
