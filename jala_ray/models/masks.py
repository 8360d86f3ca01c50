"""Who may look at whom: one interval for each query, behind every attention mask (method.md 3).

A query q sees the keys of its sample that are not later than q, and all of its own motion chunk. A sample and a chunk each lie in one
piece, so that is the interval [lo, hi) of the row: from the sample's start to q + 1 or the chunk's end, whichever is later. Data workers
make the two vectors (`Batch.lo`, `Batch.hi`); nothing here knows samples or chunks beyond that. A T x T mask is made for the reference
(`Intervals.dense`) alone: kernels take blocks on a GPU (`Intervals.blocks`), a sample at a time on a CPU (`Intervals.spans`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 128
"""Side of FlexAttention's blocks."""
QUERIES = 192
"""Of a piece of a sample, about, on a CPU."""


def may_attend(lo: Tensor, hi: Tensor, place: Tensor) -> Tensor:
    """Whether the interval [lo, hi) of a query holds a key's place in the row. All arguments broadcast together."""
    return (lo <= place) & (place < hi)


class QueryPiece(NamedTuple):
    """Some neighbouring queries of a sample, and the keys from its beginning that any of them sees."""

    queries: int
    keys: int
    mask: Tensor | None
    """(queries, keys) bool, True where attention is allowed; None: to itself and what lies before."""


class Spans(NamedTuple):
    """Attention within each sample of a row: how many of the row's keys each has, and its queries, piece by piece."""

    keys: list[int]
    pieces: list[list[QueryPiece]]


@dataclass(frozen=True, eq=False)
class Intervals:
    """Queries (Q,) of one row, in the order of their places, and the `keys` places of the row.

    A packed batch is one row; of padded rows the model makes one (`of_rows`).
    """

    lo: Tensor
    """(Q,) int64 first place that the query sees: where its sample begins."""
    hi: Tensor
    """(Q,) int64 end of what it sees, at most `keys`."""
    keys: int
    row: Intervals | None = None
    """Of all places of the row, where the queries are some of them."""

    @classmethod
    def of_rows(cls, lo: Tensor, hi: Tensor) -> Intervals:
        """Of rows (B, T), laid end to end."""
        rows, length = lo.shape
        before = length * torch.arange(rows, device=lo.device)[:, None]
        return cls((lo + before).flatten(), (hi + before).flatten(), rows * length)

    def cut(self, length: int) -> Intervals:
        """Of the row's first `length` places, queries and keys."""
        return Intervals(self.lo[:length], self.hi[:length].clamp(max=length), min(length, self.keys))

    def at(self, places: Tensor) -> Intervals:
        """The queries at `places` (M,), rising, and all keys."""
        return Intervals(self.lo[places], self.hi[places], self.keys, self)

    def dense(self) -> Tensor:
        """(1, 1, Q, keys) bool, True where attention is allowed."""
        place = torch.arange(self.keys, device=self.lo.device)
        return may_attend(self.lo[:, None], self.hi[:, None], place)[None, None]

    def spans(self) -> Spans:
        """A sample after the other; for the CPU, as the host reads where they begin."""
        starts = torch.unique_consecutive((self.row or self).lo)
        first = torch.searchsorted(self.lo, starts)
        counts = torch.diff(first, append=first.new_tensor([len(self.lo)])).tolist()
        sizes = torch.diff(starts, append=starts.new_tensor([self.keys])).tolist()
        seen = [end - start for start, end in zip(starts, self.hi.split(counts), strict=True)]
        return Spans(sizes, [_pieces(*own) for own in zip(seen, sizes, strict=True)])

    def blocks(self) -> Any:
        """A FlexAttention `BlockMask`, whose blocks come of the intervals: no Q x keys mask is made on the way."""
        from torch.nn.attention.flex_attention import BlockMask

        lo, hi = self.lo, self.hi

        def predicate(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return may_attend(lo[q], hi[q], k)

        short = -len(lo) % BLOCK
        first, end = (F.pad(x, (0, short)).unflatten(0, (-1, BLOCK))[..., None] for x in (lo, hi))
        edge = torch.arange(0, self.keys, BLOCK, device=lo.device)
        full = ((first <= edge) & (edge + BLOCK <= end)).all(1)  # (Q blocks, KV blocks)
        partial = ((first < edge + BLOCK) & (edge < end)).any(1) & ~full
        sizes: dict[str, Any] = {"BLOCK_SIZE": BLOCK, "seq_lengths": (len(lo), self.keys)}
        return BlockMask.from_kv_blocks(*_ordered(partial), *_ordered(full), mask_mod=predicate, **sizes)


def _pieces(seen: Tensor, size: int) -> list[QueryPiece]:
    """Queries of a sample of `size` keys, each of which sees the first `seen` (Q,) of them. A kernel with a mask computes what it hides,
    too: cut in pieces, a long sample spares it most of what lies after.
    """
    own = torch.arange(size)
    if len(seen) == size and torch.equal(seen, own + 1):
        return [QueryPiece(size, size, None)]
    count = max(1, round(len(seen) / QUERIES))
    ends = [(int(part.max()), part) for part in seen.tensor_split(count) if len(part)]
    return [QueryPiece(len(part), end, own[:end] < part[:, None]) for end, part in ends]


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(Q blocks, KV blocks) bool -> how many are set in each row, their columns before all others: int32, with axes for rows and heads."""
    count, columns = blocks.sum(-1), blocks.int().argsort(dim=-1, descending=True, stable=True)
    return count[None, None].int(), columns[None, None].int()
