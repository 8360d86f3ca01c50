"""Which rank trains on which rows of a step: equal work for all, by the step's rows and the number of ranks alone."""

from __future__ import annotations

import numpy as np

SAMPLE_CHUNKS = 2
"""What a sample costs beside its chunks, in chunks: a picture (256 tokens) and some words, where a chunk of one hand has 130."""
NEAR = 4
"""Rows of one clip, a task type each, lie less than so far apart in a manifest."""
LIGHT = 4
"""A pair is dealt as one where a rank's mean work is at least so many times its own."""
ALONE = 8
"""So many rows of every rank are dealt one by one, to even out what pairs left uneven."""


def deal(places: np.ndarray, world: int) -> np.ndarray:
    """(n,) of `places.PLACE`, a step's rows in plan order -> (n,) int64 the rank of each; at most ceil(n / world) rows have one.

    In rounds, the heaviest rows first: each round gives every rank one, the rank with the least so far the heaviest. Before that go
    pairs of rows of one clip, whose frames are read at once: light ones, in whole rounds, so that counts stay equal.
    """
    if world == 1:
        return np.zeros(len(places), np.int64)
    work = SAMPLE_CHUNKS + places["chunks"].astype(np.int64)
    ranks, loads = np.empty(len(places), np.int64), np.zeros(world, np.int64)
    pairs = _heaviest_first(_pairs(places), work)
    pairs = pairs[2 * work[pairs] * LIGHT * world <= work.sum()]
    rounds = max(0, min(len(pairs) // world, (len(places) // world - ALONE) // 2))
    pairs = pairs[len(pairs) - rounds * world :]
    ranks[pairs] = ranks[pairs + 1] = _in_rounds(2 * work[pairs], loads)
    rows = _heaviest_first(np.setdiff1d(np.arange(len(places)), (pairs, pairs + 1)), work)
    dealt = _in_rounds(work[rows], loads)
    # Rows of equal work may change places: in plan order, neighbours meet again.
    ranks[rows] = np.sort(dealt - world * work[rows]) % world
    return ranks


def _pairs(places: np.ndarray) -> np.ndarray:
    """(P,) first of two rows that lie together in the plan and in the manifest and have equal chunks: of one clip, but for rare chance."""
    apart = np.diff(places["row"].astype(np.int64))
    beside = (apart > 0) & (apart < NEAR) & (places["chunks"][1:] == places["chunks"][:-1])
    place = np.arange(len(beside))
    begins = np.maximum.accumulate(np.where(beside, 0, place + 1))
    return np.flatnonzero(beside & ((place - begins) % 2 == 0))


def _heaviest_first(rows: np.ndarray, work: np.ndarray) -> np.ndarray:
    """Of equal ones the first in the plan."""
    return rows[np.argsort(-work[rows], kind="stable")]


def _in_rounds(work: np.ndarray, loads: np.ndarray) -> np.ndarray:
    """(m,) work, the heaviest first -> (m,) int64 the rank that each falls to; adds it to their `loads` (world,)."""
    ranks = np.empty(len(work), np.int64)
    for first in range(0, len(work), len(loads)):
        now = slice(first, first + len(loads))
        ranks[now] = np.argsort(loads, kind="stable")[: len(work[now])]
        loads[ranks[now]] += work[now]
    return ranks
