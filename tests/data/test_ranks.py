"""Rows of a step dealt to ranks: each once, as many to each, and equal work."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.balance import MIXES, PAIRED, TASKS, measured, mixed
from jala_ray.config import DataConfig
from jala_ray.data.manifest.places import PLACE, Catalogue
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.sampling.catalogue import catalogue
from jala_ray.data.sampling.plan import Plan
from jala_ray.data.sampling.ranks import deal
from jala_ray.types import HandState, HandTrack
from tests.data.manifest_clips import NO_POSES, make_clip
from tests.data.test_signals import as_version_2, robot


def rows_of(chunks: list[int], clips: list[int] | None = None) -> Catalogue:
    """Rows of so many hand-chunks; consecutive ones of `clips` are of one video."""
    place = np.zeros(len(chunks), PLACE)
    place["row"], place["chunks"] = np.arange(len(chunks)), chunks
    new = np.ones(len(chunks), bool)
    if clips is not None:
        new[1:] = np.diff(clips) != 0
    return Catalogue(place, np.zeros(len(chunks), np.uint16), new)


rows = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 3)), min_size=1, max_size=60)
"""Clips: hand-chunks, and rows of them."""


def spread(clips: list[tuple[int, int]]) -> Catalogue:
    return rows_of(
        [chunks for chunks, times in clips for _ in range(times)],
        [i for i, (_, times) in enumerate(clips) for _ in range(times)],
    )


@settings(max_examples=200)
@given(
    clips=rows, batch=st.integers(1, 40), world=st.integers(1, 12), window=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_ranks_share_a_step_between_them(clips, batch, world, window, seed):
    """Whatever the world, the batch and what is left at an epoch's end: each row once, counts as equal as can be, the plan's order."""
    plan = Plan(spread(clips), batch, seed, DataConfig(window=window))
    for step in range(2 * plan.steps_per_epoch):
        span, shares = plan.steps.span(step), [plan.share(step, rank, world) for rank in range(world)]
        assert sorted(row.plan_row for share in shares for row in share) == list(range(span.first, span.last))
        counts = [len(share) for share in shares]
        assert max(counts) == -(-len(span) // world) <= -(-batch // world) and min(counts) == len(span) // world
        order = plan.order(span.epoch)
        for share in shares:
            assert [row.plan_row for row in share] == sorted(row.plan_row for row in share)
            assert [row.index for row in share] == [order[row.plan_row] for row in share]
            assert {row.epoch for row in share} <= {span.epoch}


@given(clips=rows, batch=st.integers(1, 40), attempts=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_a_step_holds_the_same_rows_for_any_number_of_ranks(clips, batch, attempts):
    """A run resumed with other numbers of ranks, each a process that orders the epoch for itself."""
    alone = Plan(spread(clips), batch, 5)
    for step in range(alone.steps_per_epoch + 1):
        whole = alone.share(step, 0, 1)
        assert [row.plan_row for row in whole] == list(range(alone.steps.span(step).first, alone.steps.span(step).last))
        for world in attempts:
            shares = [Plan(spread(clips), batch, 5).share(step, rank, world) for rank in range(world)]
            assert sorted((row for share in shares for row in share), key=lambda row: row.plan_row) == whole


@given(chunks=st.lists(st.integers(0, 255), min_size=1, max_size=200), world=st.integers(1, 70))
def test_a_deal_depends_on_the_rows_alone(chunks, world):
    places = rows_of(chunks).place
    dealt = deal(places, world)
    np.testing.assert_array_equal(dealt, deal(places.copy(), world))
    assert dealt.dtype == np.int64 and dealt.min() >= 0 and dealt.max() < world
    elsewhere = places.copy()
    elsewhere["offset"], elsewhere["file"], elsewhere["crc"] = 7, 3, np.arange(len(chunks))
    np.testing.assert_array_equal(dealt, deal(elsewhere, world))


def test_one_rank_reads_in_the_plans_order():
    plan = Plan(mixed(MIXES["short"], 500).catalogue, 24, 1)
    for step in range(plan.steps_per_epoch):
        span = plan.steps.span(step)
        assert [row.index for row in plan.share(step, 0, 1)] == plan.order(0)[span.first : span.last].tolist()


# --- balance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [8, 64])
@pytest.mark.parametrize("tasks", [TASKS, PAIRED], ids=["tasks", "paired"])
@pytest.mark.parametrize("name", MIXES)
def test_ranks_of_sixteen_samples_get_equal_work(name, tasks, world):
    mix = mixed(MIXES[name], 30 * 16 * world, tasks)
    cut, dealt = (measured(mix, world, 16, side, steps=25) for side in ("cut", "dealt"))
    assert cut["mean"] > 1.05 and dealt["mean"] <= 1.02, (cut, dealt)
    assert dealt["worst"] <= min(1.08, cut["worst"])
    assert dealt["opened"] <= cut["opened"] + (0.04 if tasks is TASKS else 0.2)


def test_few_samples_a_rank_are_dealt_as_evenly_as_they_can():
    """No pair is worth more than half of what a rank has."""
    mix = mixed(MIXES["any length"], 4000, PAIRED)
    cut, alone, dealt = (measured(mix, 8, 4, side) for side in ("cut", "one by one", "dealt"))
    assert dealt["mean"] == alone["mean"] < 1.05 < cut["mean"]


def test_what_a_deal_costs_is_nothing():
    """58,000 steps: seconds, where they take days."""
    assert measured(mixed(MIXES["short"], 20_000), 8, 16, "dealt", steps=100)["us"] < 2000


def test_heavy_rows_meet_light_ones():
    ranks = deal(rows_of([20, 1, 1, 1, 18, 1, 1, 1]).place, 2)
    assert ranks[0] != ranks[4] and np.bincount(ranks).tolist() == [4, 4]


def test_light_pairs_of_a_clip_stay_together():
    chunks = np.repeat([2, 4, 6, 8] * 16, 2).tolist()  # 64 clips of two rows each, to four ranks
    ranks = deal(rows_of(chunks).place, 4).reshape(-1, 2)
    assert (ranks[:, 0] == ranks[:, 1]).mean() > 0.7
    loads = np.bincount(ranks.ravel(), chunks)
    assert loads.max() <= 1.01 * loads.mean()


# --- what a row's work is --------------------------------------------------------------------------------------------

CLIPS = [
    make_clip("two", 1.0),  # two hands, two chunks of model time each
    make_clip("seen", 2.0, **NO_POSES),  # one hand, seen but not labelled
    make_clip("half", 2.5, **(NO_POSES | {"hands": (HandTrack(HandState.UNTRACKED), HandTrack(HandState.UNTRACKED))})),
]
HAND_CHUNKS = [4, 4, 10]


def test_a_manifests_rows_count_by_chunks_and_hands(tmp_path):
    write_manifest([*CLIPS, robot("robot", video_uri="videos/b.mp4")], tmp_path / "new.parquet")
    as_version_2(tmp_path / "old.parquet", CLIPS)
    found = [catalogue(Manifest(tmp_path / f"{name}.parquet"), DataConfig(), "train") for name in ("new", "old")]
    assert [one.place["chunks"].tolist() for one in found] == [[*HAND_CHUNKS, 0], HAND_CHUNKS]


def test_a_plans_digest_is_as_it_was_before_rows_had_work():
    """Runs that began then go on."""
    found = mixed(MIXES["short"], 100).catalogue
    found.place["size"], found.place["offset"] = 5, np.arange(len(found)) * 5
    before = np.dtype([("row", "<u4"), ("file", "<u2"), ("crc", "<u4"), ("size", "<i4"), ("offset", "<i8")])
    was = np.zeros(len(found), before)
    for name in before.names or ():
        was[name] = found.place[name]
    assert found.digest() == hashlib.blake2b(was.tobytes() + found.cell.tobytes(), digest_size=8).hexdigest()
