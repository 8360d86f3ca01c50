"""The epoch's order, and that every plan row is consumed once whatever is killed or resized."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jala_ray.config import DataConfig
from jala_ray.data.manifest.places import PLACE, Catalogue, RowFilter, clip_hashes, thinned
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.pipeline import shares_of
from jala_ray.data.sampling.catalogue import catalogue
from jala_ray.data.sampling.mixture import apportion, cell_shares
from jala_ray.data.sampling.plan import Plan, PlanRow
from jala_ray.types import ConfigError, ManifestError
from tests.data.manifest_clips import PLAIN, make_clip
from tests.support import by_number

PLAIN_ORDER = DataConfig(window=1)


def videos(*lengths: int, cells: int = 1) -> Catalogue:
    """A catalogue of videos with so many rows each; row i is of cell i % cells."""
    n = sum(lengths)
    place = np.zeros(n, PLACE)
    place["row"] = np.arange(n)
    new = np.zeros(n, bool)
    new[np.cumsum([0, *lengths[:-1]])] = True
    names = tuple((f"source{c // 2}", ("generation", "pure_video")[c % 2]) for c in range(cells))
    return Catalogue(place, (np.arange(n) % cells).astype(np.uint16), new, names)


def video_of(found: Catalogue) -> np.ndarray:
    return np.cumsum(found.new_video) - 1


# --- the order -------------------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    window=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 5),
)
def test_an_epoch_holds_every_row_once_in_windows_of_a_video(lengths, window, seed, epoch):
    found = videos(*lengths)
    order = Plan(found, 8, seed, DataConfig(window=window)).order(epoch)
    assert sorted(order) == list(range(sum(lengths)))
    again = Plan(found, 3, seed, DataConfig(window=window)).order(epoch)
    np.testing.assert_array_equal(order, again)  # the batch size does not enter
    # Every video comes in pieces of at most `window` consecutive rows, and in no more pieces than two cuts at the ends allow.
    pieces = 1 + np.flatnonzero(np.diff(order.astype(int)) != 1).size
    assert pieces <= sum(-(-length // window) + 1 for length in lengths)


def test_orders_differ_by_epoch_and_seed_and_mix_the_whole_manifest():
    found = videos(*[4] * 2000)
    plan = Plan(found, 8, 0, PLAIN_ORDER)
    first = plan.order(0).astype(int)
    assert not np.array_equal(first, plan.order(1)) and not np.array_equal(
        first, Plan(found, 8, 1, PLAIN_ORDER).order(0)
    )
    assert abs(np.corrcoef(first, np.arange(8000))[0, 1]) < 0.05
    assert np.abs(np.diff(first)).mean() == pytest.approx(8000 / 3, rel=0.05)  # of independent uniform draws
    windows = Plan(found, 8, 0, DataConfig(window=4)).order(0)
    assert (np.diff(video_of(found)[windows]) == 0).mean() == pytest.approx(0.75, abs=0.01)


def test_window_neighbours_change_between_epochs():
    plan = Plan(videos(*[6] * 50), 8, 0, DataConfig(window=3))
    pairs = [{(int(a), int(b)) for a, b in pairwise(o) if b == a + 1} for o in map(plan.order, range(8))]
    assert len(set.union(*pairs)) > 1.2 * len(pairs[0])


# --- mixture ---------------------------------------------------------------------------------------------------------


def counts(plan: Plan, epoch: int = 0) -> dict[tuple[str, str], int]:
    cells = Counter(plan.catalogue.cell[plan.order(epoch)].tolist())
    return {plan.catalogue.cells[c]: n for c, n in cells.items()}


def test_weights_give_shares_of_a_stated_length():
    data = DataConfig(task_weights=(("generation", 3.0), ("pure_video", 1.0)), epoch_rows=1000)
    plan = Plan(videos(*[5] * 60, cells=2), 16, 0, data)
    assert plan.steps.rows == 1000
    assert counts(plan) == {("source0", "generation"): 750, ("source0", "pure_video"): 250}
    # 150 rows give 750: each five times; 150 give 250: each once, and 100 of them, drawn anew every epoch, twice.
    seen = [Counter(plan.order(epoch).tolist()) for epoch in (0, 1)]
    assert {n for row, n in seen[0].items() if row % 2 == 0} == {5}
    assert Counter(n for row, n in seen[0].items() if row % 2) == {2: 100, 1: 50}
    assert {r for r, n in seen[0].items() if n == 2} != {r for r, n in seen[1].items() if n == 2}


def test_copies_of_a_row_are_not_neighbours():
    """Rows of one video are, two and two; a row that is drawn more than once comes in windows of its own."""
    data = DataConfig(task_weights=(("generation", 3.0), ("pure_video", 1.0)), epoch_rows=2000)
    order = Plan(videos(*[2] * 200, cells=2), 16, 0, data).order(0)
    assert (np.diff(order) == 0).mean() < 0.01
    # First copies of a video's two rows stand side by side; of the others only one of the two rows has any left.
    assert (order[1:] // 2 == order[:-1] // 2).sum() >= 200


def test_both_kinds_of_weights_hold_together():
    cells = [("a", "generation"), ("a", "pure_video"), ("b", "generation"), ("b", "pure_video")]
    sizes = np.array([400, 100, 50, 450])
    data = DataConfig(source_weights=(("a", 0.7), ("b", 0.3)), task_weights=(("generation", 0.4), ("pure_video", 0.6)))
    shares = cell_shares(cells, sizes, data)
    np.testing.assert_allclose([shares[:2].sum(), shares[[0, 2]].sum()], [0.7, 0.4], atol=1e-8)
    # Raking keeps the cells' odds ratio.
    assert shares[0] * shares[3] / (shares[1] * shares[2]) == pytest.approx(400 * 450 / (100 * 50), rel=1e-6)
    np.testing.assert_allclose(cell_shares(cells, sizes, DataConfig()), sizes / 1000)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=12), st.integers(1, 10_000))
def test_apportion_is_exact(shares, length):
    found = apportion(np.array(shares), length)
    assert found.sum() == length
    assert np.abs(found - np.array(shares) / sum(shares) * length).max() < 1


@pytest.mark.parametrize(
    "weights,message",
    [
        ({"source_weights": (("sourc0", 1.0),)}, "Did you mean source0"),
        ({"task_weights": (("generation", 1.0),)}, "a weight for 'pure_video' too"),
        ({"task_weights": (("generation", -1.0), ("pure_video", 1.0))}, "weights >= 0"),
        ({"task_weights": (("generation", 0.0), ("pure_video", 0.0))}, "not all 0"),
        (
            {"source_weights": (("a", 0.9), ("b", 0.1)), "task_weights": (("generation", 0.5), ("pure_video", 0.5))},
            "weights of one of the two only",
        ),
    ],
)
def test_weights_that_cannot_be(weights, message):
    found = videos(10, 10, cells=2)
    if "a" in dict(weights.get("source_weights", ())):
        found = replace(found, cells=(("a", "generation"), ("b", "pure_video")))
    with pytest.raises(ConfigError, match=message):
        Plan(found, 8, 0, replace(DataConfig(), **weights)).order(0)


def test_wild_fractions_are_nested_and_exact():
    ids = [f"clip{i // 2}" for i in range(2000)]  # two task types a clip
    wild = np.arange(2000) < 1600
    hashed = clip_hashes(ids, wild)
    kept = {f: set(np.flatnonzero(thinned(hashed, f))) for f in (0.0, 0.25, 0.5, 1.0)}
    assert [len(kept[f]) for f in (0.0, 0.25, 0.5, 1.0)] == [400, 800, 1200, 2000]
    assert kept[0.0] < kept[0.25] < kept[0.5] < kept[1.0]
    assert all((2 * (i // 2) in kept[0.25]) == (2 * (i // 2) + 1 in kept[0.25]) for i in range(2000))


# --- the manifest's catalogue ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Manifest:
    """12 clips of 4 videos in three files: train and val, lab and wild, labelled and not, one without a video."""
    clips = []
    for i in range(12):
        bare = {"hands": PLAIN, "pose_time_s": np.zeros(0, np.float32), "extrinsics": np.zeros((0, 3, 4), np.float32)}
        change = {
            "video_uri": f"v/{i // 3}.mp4" if i != 5 else None,
            "domain": "wild" if i >= 6 else "lab",
            "source": "ego" if i >= 6 else "lab_a",
            "split": "val" if i in (2, 11) else "train",
            "task_type": "pure_video" if i >= 9 else "generation",
            **(bare if i >= 9 else {}),
        }
        clips.append(make_clip(f"clip{i}", 1.0, **change))
    return Manifest(write_manifest(clips, tmp_path_factory.mktemp("m") / "set", rows_per_file=5).path)


def test_the_catalogue_of_a_manifest(stored):
    train = catalogue(stored, DataConfig(), "train")
    assert train.place["row"].tolist() == [0, 1, 3, 4, 6, 7, 8, 9, 10]
    assert video_of(train).tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 4]  # a file ends a run
    assert [train.cells[c] for c in train.cell[[0, 4, 8]]] == [
        ("lab_a", "generation"),
        ("ego", "generation"),
        ("ego", "pure_video"),
    ]
    for place in train.place:
        row = Plan(train, 1, 0).steps  # arithmetic alone
        assert row.rows == 9
        assert stored.address(int(place["row"])) == (
            train.files[place["file"]],
            *[int(place[k]) for k in ("offset", "size", "crc")],
        )
    assert catalogue(stored, DataConfig(labels="labelled_only"), "train").place["row"].tolist() == [0, 1, 3, 4, 6, 7, 8]
    assert catalogue(stored, DataConfig(), "val", RowFilter("wild")).place["row"].tolist() == [11]
    assert catalogue(stored, DataConfig(wild_fraction=0.0), "train").place["row"].tolist() == [0, 1, 3, 4]
    assert len(catalogue(stored, DataConfig(wild_fraction=0.4), "train")) == 4 + 2
    assert len(catalogue(stored, DataConfig(wild_fraction=0.0), "val", RowFilter("wild"))) == 1
    assert train.digest() == catalogue(stored, DataConfig(), "train").digest()
    assert train.digest() != catalogue(stored, DataConfig(wild_fraction=0.4), "train").digest()


def test_a_manifest_without_training_rows_is_refused(tmp_path):
    path = write_manifest([make_clip(split="val")], tmp_path / "m.parquet").path
    with pytest.raises(ManifestError, match="at least one row of split 'train'"):
        catalogue(Manifest(path), DataConfig(), "train")


def test_planning_a_million_rows_takes_tens_of_megabytes():
    place = np.zeros(1_000_000, PLACE)
    place["row"] = np.arange(len(place))
    new = np.arange(len(place)) % 6 == 0
    plan = Plan(Catalogue(place, np.zeros(len(place), np.uint16), new), 128, 0, DataConfig(epoch_rows=1_500_000))
    tracemalloc.start()
    plan.order(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * 1_500_000


# --- exactly once ----------------------------------------------------------------------------------------------------


def streams(first: int, last: int, world: int, m: int) -> list[list[int]]:
    """The steps that every rank meets: blocks are dealt out in turn."""
    ranks: list[list[int]] = [[] for _ in range(world)]
    blocks = -(-(last - first) // m) * world
    for block in range(blocks):
        rank, steps = shares_of(block, first, last, world, m)
        assert rank == block % world
        ranks[rank] += steps
    return ranks


attempts = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(0, 60)), min_size=0, max_size=5
)  # workers, block size, steps until the kill


@settings(max_examples=300)
@given(
    rows=st.integers(1, 150),
    batch=st.integers(1, 24),
    epochs=st.integers(1, 3),
    every=st.integers(1, 9),
    attempts=attempts,
    final=st.tuples(st.integers(1, 5), st.integers(1, 7)),
)
def test_every_row_once_whatever_is_killed_or_resized(rows, batch, epochs, every, attempts, final):
    """Attempts with other numbers of workers and block sizes, killed anywhere, resumed from the last checkpoint."""
    found = by_number(np.arange(rows))
    found.place["chunks"] = np.random.default_rng(rows).integers(0, 21, rows)
    plan = Plan(found, batch, 0)
    total = epochs * plan.steps_per_epoch
    lineage: dict[int, Counter[tuple[int, int]]] = {}  # step -> the rows consumed; a resumed attempt writes steps anew
    committed = 0
    for world, m, lasted in [*attempts, (*final, total)]:
        assert streams(committed, total, world, m) == [list(range(committed, total))] * world
        reached = min(total, committed + lasted)
        for step in range(committed, reached):
            shares: list[list[PlanRow]] = [plan.share(step, rank, world) for rank in range(world)]
            lineage[step] = Counter((row.epoch, row.plan_row) for share in shares for row in share)
            assert max(map(len, shares)) <= -(-batch // world)
        committed = (
            total
            if reached == total
            else reached // every * every
            if reached // every * every > committed
            else committed
        )
        if committed == total:
            break
    assert sorted(lineage) == list(range(total))
    consumed = sum(lineage.values(), Counter())
    assert consumed == Counter((epoch, row) for epoch in range(epochs) for row in range(rows))
    for step, rows_met in lineage.items():
        epoch, within = divmod(step, plan.steps_per_epoch)
        assert set(rows_met) == {(epoch, row) for row in range(within * batch, min(rows, (within + 1) * batch))}


def test_workers_3_to_2_to_4_meet_the_same_batches():
    plan = Plan(by_number(np.arange(50)), 8, 3)
    for step in range(2 * plan.steps_per_epoch):
        whole = [row.index for row in plan.share(step, 0, 1)]
        for world in (2, 3, 4):
            assert sorted(row.index for rank in range(world) for row in plan.share(step, rank, world)) == sorted(whole)
