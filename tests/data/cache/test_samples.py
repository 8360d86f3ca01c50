"""A cache gives what its manifest gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jala_ray import storage
from jala_ray.config import DataConfig
from jala_ray.data.cache.folder import Cache, CacheIndex
from jala_ray.data.cache.making import manifest_key
from jala_ray.data.manifest.places import RowFilter
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.samples.halving import halves
from jala_ray.data.samples.share import StepShare
from jala_ray.data.samples.source import Look, Sample
from jala_ray.data.samples.steps import ShareBuilder
from jala_ray.data.sampling.catalogue import catalogue
from jala_ray.data.sampling.plan import Plan
from jala_ray.tasks import hand_tasks
from jala_ray.training.flops import Workload
from jala_ray.types import ManifestError
from tests.data.cache.worlds import (
    PRESET,
    Opened,
    clips,
    from_manifest,
    lay_out,
    make,
    open_cache,
    parts_of,
    same_samples,
    start,
)
from tests.support import make_batch, packed, same_batch

# --- what a cache gives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESET)
@pytest.mark.parametrize("store", ["features", "all"])
def test_features_are_those_of_the_pictures(world: Manifest, tmp_path: Path, store: str, preset: str) -> None:
    config, _, learner = parts_of(preset)
    make(start(tmp_path / "cache", world, preset, store=store))
    opened = open_cache(tmp_path / "cache", preset)
    assert [row.index for row in opened.rows] == [i for i in range(12) if i != 6]
    laid, errors = lay_out(opened.source, opened.rows, preset)
    expected = from_manifest(world, opened.rows, preset)
    assert not errors
    same_samples(laid, expected)

    pixels, cached = make_batch(expected), make_batch(laid)
    assert pixels.frames is not None and cached.frames is None
    for still in (False, True):
        wanted, found = learner.features(pixels, still), learner.features(cached, still)
        assert wanted is not None and found is not None
        assert (found.still is None) == (wanted.still is None) == (not still)
        for name in ("first", "pairs", "still"):
            torch.testing.assert_close(getattr(found, name), getattr(wanted, name), atol=1e-5, rtol=1e-4)
    figures, again = learner.monitors(pixels), learner.monitors(cached)
    assert figures["rho"] > 0
    assert again == pytest.approx(figures, rel=1e-2)

    # A share without any readable row has the same columns, so that ranks keep step.
    builder = ShareBuilder(config, lambda: (opened.source, parts_of(preset)[1]), 0)
    empty = make_batch([builder._padding()])
    learner.check_columns(empty)
    assert empty.tensors().keys() == cached.tensors().keys() and learner.features(empty, still=True) is not None
    same_batch(StepShare.from_buffer(packed(StepShare(0, [cached], 1))).micro[0], cached)


@pytest.mark.parametrize("preset", PRESET)
def test_halves_are_near_and_reach_the_model(world: Manifest, tmp_path: Path, preset: str) -> None:
    learner = parts_of(preset)[2]
    make(start(tmp_path / "cache", world, preset, dtype="float16"))
    opened = open_cache(tmp_path / "cache", preset)
    laid, _ = lay_out(opened.source, opened.rows, preset)
    pixels, cached = make_batch(from_manifest(world, opened.rows, preset)), make_batch(laid)
    halves = [tensor for name, tensor in cached.tensors().items() if name.endswith("_features")]
    assert halves and all(tensor.dtype == torch.float16 for tensor in halves)
    wanted, found = learner.features(pixels), learner.features(cached)
    assert wanted is not None and found is not None and found.pairs.dtype == torch.float32
    torch.testing.assert_close(found.pairs, wanted.pairs, atol=1e-3, rtol=1e-3)
    assert learner(cached).loss.item() == pytest.approx(learner(pixels).loss.item(), rel=1e-3)


@pytest.mark.parametrize("preset", PRESET)
def test_codes_alone_leave_the_pictures_to_the_videos(
    world: Manifest, tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, assets, _ = parts_of(preset)
    make(start(tmp_path / "cache", world, preset, store="codes"))
    assert not list((tmp_path / "cache").rglob("arrays"))
    opened = open_cache(tmp_path / "cache", preset)
    expected = from_manifest(world, opened.rows, preset)

    def refuse(*_: object) -> None:
        raise AssertionError("no motion is tokenised")

    monkeypatch.setattr(assets.motion, "encode", refuse)
    laid, errors = lay_out(opened.source, opened.rows, preset)
    assert not errors
    same_samples(laid, expected)
    for one, other in zip(laid, expected, strict=True):
        np.testing.assert_array_equal(one.pictures["frames"], other.pictures["frames"])
    black = opened.source.blank()
    assert set(black) == {"image", "frames"}


@pytest.mark.parametrize("store", ["features", "all"])
def test_pixels_that_are_wanted_beside_features_are_decoded(world: Manifest, tmp_path: Path, store: str) -> None:
    """Features are the cache's, so that the encoder sees nothing; the frames are the manifest's, and so is the loss."""
    preset = "tiny_lapa_actions_pixels"
    _, _, learner = parts_of(preset)
    make(start(tmp_path / "cache", world, preset, store=store))
    opened = open_cache(tmp_path / "cache", preset)
    laid, errors = lay_out(opened.source, opened.rows, preset)
    assert not errors
    plain, cached = make_batch(from_manifest(world, opened.rows, preset)), make_batch(laid)
    assert plain.frame_features is None and cached.frame_features is not None
    assert plain.frames is not None and cached.frames is not None and torch.equal(cached.frames, plain.frames)
    one, other = learner(plain), learner(cached)
    assert one.sums["reconstruction/sum"] > 0
    torch.testing.assert_close(other.loss, one.loss, rtol=1e-4, atol=1e-5)
    work, direct = Workload.of(cached), Workload.of(plain)
    assert (work.frames, work.frame_pairs) == (0, 0) and direct.frames and work.pairs == direct.pairs
    for part, rows in zip(halves(cached), halves(plain), strict=True):
        torch.testing.assert_close(learner(part).loss, learner(rows).loss, rtol=1e-4, atol=1e-5)
    builder = ShareBuilder(parts_of(preset)[0], lambda: (opened.source, parts_of(preset)[1]), 0)
    empty = make_batch([builder._padding()])
    learner.check_columns(empty)
    assert empty.tensors().keys() == cached.tensors().keys() and learner(empty).loss == 0


def test_an_objective_without_features_reads_none(world: Manifest, tmp_path: Path) -> None:
    make(start(tmp_path / "cache", world, store="all"))
    opened = open_cache(tmp_path / "cache", "tiny_next_token")
    (example,) = opened.source.samples(opened.rows[:1])
    assert isinstance(example, Sample)
    (seen,) = opened.source.pictures([Look(example, [], [])])
    assert isinstance(seen, dict) and set(seen) == {"image"}


def test_only_what_a_sample_needs_is_read(world: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(start(tmp_path / "frames", world, store="all"))
    make(start(tmp_path / "pairs", world, "tiny_vjepa"))
    read: list[int] = []

    def counting(real: Callable, width: Callable) -> Callable:
        def counted(uri: str, *where: Any, **rest: Any) -> Any:
            read.append(width(*where))
            return real(uri, *where, **rest)

        return counted

    opened, paired = open_cache(tmp_path / "frames"), open_cache(tmp_path / "pairs", "tiny_vjepa")
    record = counting(storage.read_range, lambda begin, end, *_: end - begin)
    ranges = counting(storage.read_ranges, lambda ranges, *_: sum(end - begin for begin, end in ranges))
    monkeypatch.setattr(storage, "read_range", record)
    monkeypatch.setattr(storage, "read_ranges", ranges)

    def bytes_of(one: Opened, boundaries: list[int], pairs: list[int]) -> int:
        (example,) = one.source.samples(one.rows[:1])
        assert isinstance(example, Sample)
        assert one.rows[0].address is not None and read == [one.rows[0].address.size]
        read.clear()
        (seen,) = one.source.pictures([Look(example, boundaries, pairs)])
        assert isinstance(seen, dict)
        total = sum(read)
        read.clear()
        return total

    image, unit = 3 * 28 * 28, 4 * 4 * 16  # 2 x 2 patches of width 16 in float32
    assert bytes_of(opened, [0, 1, 2], [1]) == image + 3 * unit
    assert bytes_of(opened, [0], []) == image + unit
    video = bytes_of(paired, [], [])  # the first picture, from the video
    assert video > 0
    assert bytes_of(paired, [0, 2, 3], [2]) == video + 3 * unit  # (v_0, v_0), (v_2, v_2), (v_2, v_3)


def test_videos_may_move_with_their_manifest(world: Manifest, tmp_path: Path) -> None:
    # The manifest says videos/one.mp4 only where the videos lie under it.
    folder = tmp_path / "here"
    shutil.copytree(Path(world.base).parent / "videos", folder / "videos")
    made = [replace(clip, packets=None) for clip in clips(str(folder))]
    manifest = Manifest(write_manifest(made, folder / "m.parquet").path)
    make(start(tmp_path / "cache", manifest, store="codes"))
    rows = open_cache(tmp_path / "cache").rows
    expected = from_manifest(manifest, rows)
    folder.rename(tmp_path / "there")
    moved = Manifest(tmp_path / "there/m.parquet")
    assert manifest_key(moved) == Cache.open(str(tmp_path / "cache")).facts.manifest
    laid, errors = lay_out(open_cache(tmp_path / "cache", base=moved.base).source, rows)
    assert not errors
    same_samples(laid, expected)
    assert len(lay_out(open_cache(tmp_path / "cache").source, rows)[1]) == len(rows), "the old place is empty"


# --- plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        DataConfig(),
        DataConfig(labels="labelled_only"),
        DataConfig(wild_fraction=0.5),
        DataConfig(window=3, epoch_rows=40, task_weights=tuple(zip(hand_tasks(), (4.0, 1.0, 1.0, 3.0), strict=True))),
        DataConfig(wild_fraction=0.25, source_weights=(("ego", 1.0), ("test", 1.0), ("other", 2.0))),
    ],
    ids=["all", "labelled", "half wild", "tasks", "sources"],
)
def test_a_cache_plans_as_its_manifest_does(world: Manifest, tmp_path: Path, data: DataConfig) -> None:
    made = make(start(tmp_path / "cache", world, store="codes"))
    index = CacheIndex.read(made)
    for split, domain in (("train", None), ("train", "wild"), ("val", "lab"), ("val", "wild")):
        wanted = catalogue(world, data, split, RowFilter(domain))  # type: ignore[arg-type]
        found = index.catalogue(made, data, split, RowFilter(domain))  # type: ignore[arg-type]
        assert found.cells == wanted.cells and len(found.cells) >= (1 if domain is None else 0)
        for name in ("cell", "new_video"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        np.testing.assert_array_equal(found.place["chunks"], wanted.place["chunks"])
        whole = domain is None
        for epoch in range(3):
            orders = [
                one.place["row"][Plan(one, 4, 7, data if whole else DataConfig()).order(epoch)]
                for one in (found, wanted)
            ]
            np.testing.assert_array_equal(*orders)


def test_rows_of_a_cache_made_before_they_had_work_count_alike(world: Manifest, tmp_path: Path) -> None:
    made = make(start(tmp_path / "cache", world, store="codes"))
    index = CacheIndex.read(made)
    assert (index.columns["chunks"] > 0).all()
    before = replace(index, columns={name: held for name, held in index.columns.items() if name != "chunks"})
    found = CacheIndex.from_bytes(before.to_bytes()).catalogue(made, DataConfig(), "train")
    assert not found.place["chunks"].any() and found.digest() == index.catalogue(made, DataConfig(), "train").digest()


def test_a_cache_without_training_rows_is_refused(world: Manifest, tmp_path: Path) -> None:
    made = make(start(tmp_path / "cache", world, store="codes"))
    index = CacheIndex.read(made)
    index.columns["split"][:] = 1  # type: ignore[index]
    with pytest.raises(ManifestError, match="at least one row of split 'train'"):
        index.catalogue(made, DataConfig(), "train")
