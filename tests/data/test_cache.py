"""A cache gives what its manifest gives, refuses what is stale, and is made part by part."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch

from jala_ray import storage
from jala_ray.config import DataConfig, RunConfig
from jala_ray.data.cache import making as cache_making
from jala_ray.data.cache.folder import PREPROCESSING_VERSION, Cache, CacheFacts, CacheIndex
from jala_ray.data.cache.making import Making, begin, manifest_key
from jala_ray.data.cache.source import CacheSource
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.samples.assets import Assets, tokenizer_key
from jala_ray.data.samples.collate import Laid
from jala_ray.data.samples.share import StepShare
from jala_ray.data.samples.source import BadRow, Look, ManifestSource, Pictures, Sample, Source
from jala_ray.data.samples.steps import OpenManifest, ShareBuilder
from jala_ray.data.sampling.catalogue import catalogue
from jala_ray.data.sampling.plan import Plan, PlanRow, plan_rows
from jala_ray.hands.resample import chunk_features
from jala_ray.models.frame_encoder import encoder_key
from jala_ray.presets import PRESETS
from jala_ray.storage import StorageOptions
from jala_ray.training.learner import Learner
from jala_ray.types import TASK_TYPES, Clip, HandState, HandTrack, ManifestError, UserError
from jala_ray.video.frames import clip_frames, index_boundaries
from jala_ray.video.packets import PacketScan
from jala_ray.video.write import write_mp4
from tests.data.test_source import make_clip
from tests.support import make_assets, make_batch, make_learner, packed, same_batch, small
from tests.video.numbered import numbered

PRESET = ("tiny", "tiny_vjepa")
NO_OPTIONS = StorageOptions()
UNTRACKED, ABSENT = HandTrack(HandState.UNTRACKED), HandTrack(HandState.ABSENT)


def wild(name: str, video: str, start: float, hands: tuple[HandTrack, HandTrack], **change: Any) -> Clip:
    nothing = {"pose_time_s": np.zeros(0, np.float32), "extrinsics": np.zeros((0, 3, 4), np.float32)}
    where = {"video_uri": video, "start_s": start, "end_s": start + 1.0, "time_scale": 0.5, "domain": "wild"}
    return make_clip(
        name, 1.0, **({"task_type": "pure_video", "source": "ego", "hands": hands} | nothing | where | change)
    )


def lab(name: str, seconds: float, video: str, start: float, **change: Any) -> Clip:
    clip = make_clip(name, seconds)
    return replace(clip, video_uri=video, start_s=start, end_s=start + seconds, **change)


def clips(folder: str) -> list[Clip]:
    """Every kind of row: both splits and domains, all task types, hands labelled, untracked, absent; one has no video."""
    one, two, three = (f"{folder}/videos/{name}.mp4" for name in ("one", "two", "three"))
    whole = lab("a", 3.0, one, 0.0)
    gap = whole.hands[0].valid.copy()
    gap[40:60] = False  # the second chunk of the left hand
    return [
        whole,
        lab("b", 2.0, one, 1.0, hands=(ABSENT, make_clip("b").hands[1])),
        lab("c", 3.0, one, 0.5, task_type="continuation", hands=(replace(whole.hands[0], valid=gap), whole.hands[1])),
        lab("d", 2.0, two, 0.0, task_type="description", source="other"),
        lab("v", 2.0, two, 0.0, split="val"),
        lab("e", 2.0, two, 1.5, hands=(make_clip("e").hands[0], UNTRACKED)),
        make_clip("motion"),
        wild("f", three, 0.0, (UNTRACKED, UNTRACKED)),
        wild("g", three, 1.0, (UNTRACKED, ABSENT)),
        wild("h", three, 2.0, (UNTRACKED, UNTRACKED)),
        wild("w", three, 0.3, (UNTRACKED, UNTRACKED), split="val"),
        wild("i", one, 2.2, (UNTRACKED, UNTRACKED)),
    ]


def write_world(folder: str, options: StorageOptions | None = None) -> Manifest:
    """Videos and a manifest of three files; every second row has a packet index."""
    made = [
        clip if i % 2 or clip.video_uri is None else replace(clip, packets=_packets(clip, options))
        for i, clip in enumerate(clips(folder))
    ]
    assert sum(clip.packets is not None for clip in made) >= 4
    return Manifest(write_manifest(made, f"{folder}/set", rows_per_file=5, options=options).path, options)


def _packets(clip: Clip, options: StorageOptions | None):
    assert clip.video_uri is not None
    return index_boundaries(PacketScan(clip.video_uri, options), clip)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("world")
    (folder / "videos").mkdir()
    for number, name in enumerate(("one", "two", "three")):
        write_mp4(folder / "videos" / f"{name}.mp4", numbered(120, first=10 * number), 30, gop=10, preset="ultrafast")
    return write_world(str(folder))


@cache
def parts_of(preset: str) -> tuple[RunConfig, Assets, Learner]:
    config = small(PRESETS[preset])
    assets = make_assets(config)
    return config, assets, make_learner(config, assets).eval()


def start(path: Path | str, manifest: Manifest, preset: str = "tiny", **settings: Any) -> Making:
    config, assets, _ = parts_of(preset)
    given = {"store": "features", "dtype": "float32", "part_rows": 4} | settings
    return begin(str(path), manifest, assets, config.model.encoder, given.pop("options", NO_OPTIONS), **given)


def make(making: Making, share: float = 0.0) -> Cache:
    for part in making.missing():
        making.job(part)
    return making.finish(share)[0]


def numbers(making: Making) -> list[int]:
    return [part.number for part in making.missing()]


@dataclass
class Opened:
    """A cache's source and its rows in the order of the manifest."""

    cache: Cache
    source: CacheSource
    rows: list[PlanRow]


def open_cache(path: Path | str, preset: str = "tiny", *, base: str | None = None, options=NO_OPTIONS) -> Opened:
    config, assets, _ = parts_of(preset)
    cache = Cache.open(str(path), options)
    index = CacheIndex.read(cache, options)
    found = [index.catalogue(cache, DataConfig(), split) for split in ("train", "val")]  # type: ignore[arg-type]
    rows = [row for one in found for row in plan_rows(one.place, one.files, 0, 0)]
    source = CacheSource(cache, base or cache.base, assets, options, config.objective.layout.frames)
    return Opened(cache, source, sorted(rows, key=lambda row: row.index))


def lay_out(source: Source, rows: list[PlanRow], preset: str = "tiny") -> tuple[list[Laid], list[dict[str, Any]]]:
    config, assets, _ = parts_of(preset)
    builder = ShareBuilder(config, lambda: (source, assets), 0)
    return builder.lay_out([replace(row, plan_row=row.index) for row in rows], 0)


def from_manifest(manifest: Manifest, rows: list[PlanRow], preset: str = "tiny") -> list[Laid]:
    source = ManifestSource(manifest.base, parts_of(preset)[1], manifest.options)
    laid, errors = lay_out(source, [replace(row, address=manifest.address(row.index)) for row in rows], preset)
    assert not errors
    return laid


def same_samples(found: list[Laid], expected: list[Laid]) -> None:
    assert [one.plan_row for one in found] == [one.plan_row for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.boundaries == other.boundaries and one.sequence.pairs == other.sequence.pairs
        np.testing.assert_array_equal(one.image, other.image)
        for name, column in other.sequence.columns.items():
            np.testing.assert_array_equal(one.sequence.columns[name], column)


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
        np.testing.assert_array_equal(one.frames, other.frames)
    black = opened.source.blank()
    assert black.frames is not None and black.features is None


def test_an_objective_without_features_reads_none(world: Manifest, tmp_path: Path) -> None:
    make(start(tmp_path / "cache", world, store="all"))
    opened = open_cache(tmp_path / "cache", "tiny_next_token")
    (example,) = opened.source.samples(opened.rows[:1])
    assert isinstance(example, Sample)
    (seen,) = opened.source.pictures([Look(example, [], [])])
    assert isinstance(seen, Pictures) and seen.features is None and seen.frames is None


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
        assert isinstance(seen, Pictures)
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
        DataConfig(window=3, epoch_rows=40, task_weights=tuple(zip(TASK_TYPES, (4.0, 1.0, 1.0, 3.0), strict=True))),
        DataConfig(wild_fraction=0.25, source_weights=(("ego", 1.0), ("test", 1.0), ("other", 2.0))),
    ],
    ids=["all", "labelled", "half wild", "tasks", "sources"],
)
def test_a_cache_plans_as_its_manifest_does(world: Manifest, tmp_path: Path, data: DataConfig) -> None:
    made = make(start(tmp_path / "cache", world, store="codes"))
    index = CacheIndex.read(made)
    for split, domain in (("train", None), ("train", "wild"), ("val", "lab"), ("val", "wild")):
        wanted = catalogue(world, data, split, domain)  # type: ignore[arg-type]
        found = index.catalogue(made, data, split, domain)  # type: ignore[arg-type]
        assert found.cells == wanted.cells and len(found.cells) >= (1 if domain is None else 0)
        for name in ("cell", "new_video"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        whole = domain is None
        for epoch in range(3):
            orders = [
                one.place["row"][Plan(one, 4, 7, data if whole else DataConfig()).order(epoch)]
                for one in (found, wanted)
            ]
            np.testing.assert_array_equal(*orders)


def test_a_cache_without_training_rows_is_refused(world: Manifest, tmp_path: Path) -> None:
    made = make(start(tmp_path / "cache", world, store="codes"))
    index = CacheIndex.read(made)
    index.columns["split"][:] = 1  # type: ignore[index]
    with pytest.raises(ManifestError, match="at least one row of split 'train'"):
        index.catalogue(made, DataConfig(), "train")


# --- what is stale or damaged ----------------------------------------------------------------------------------------


def test_what_is_stale_is_refused_by_name(world: Manifest, tmp_path: Path) -> None:
    config, assets, _ = parts_of("tiny")
    cache = make(start(tmp_path / "cache", world, store="all"))
    own = {
        "tokenizer": tokenizer_key(assets),
        "encoder": encoder_key(config.model.encoder),
        "image_size": assets.spec.image_size,
        "manifest": manifest_key(world),
    }
    cache.refuse_stale(**own)
    for name in own:
        with pytest.raises(ManifestError, match=f"{name}: got .*stale: make it again with `jala cache`"):
            cache.refuse_stale(**own | {name: 7 if name == "image_size" else "another"})
    older = replace(cache, facts=replace(cache.facts, preprocessing=0))
    with pytest.raises(ManifestError, match="preprocessing: got 0"):
        older.refuse_stale(**own)
    # What a run does not use, and what is not stored, does not matter.
    cache.refuse_stale(**own | {"encoder": None, "manifest": None})
    codes = make(start(tmp_path / "codes", world, store="codes"))
    codes.refuse_stale(**own | {"encoder": "another", "image_size": 7})


def test_other_folders_are_refused(world: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"a folder with a cache.json.*Make one with `jala cache`"):
        Cache.open(str(tmp_path / "nothing"))
    making = start(tmp_path / "cache", world, store="codes")
    with pytest.raises(ManifestError, match="a finished cache"):
        Cache.open(str(tmp_path / "cache"))
    make(making)
    place = tmp_path / "cache/cache.json"
    stored = json.loads(place.read_text())
    for broken, message in (
        ({**stored, "facts": {**stored["facts"], "format": "jala_ray.cache/0"}}, "format: got 'jala_ray.cache/0'"),
        ({**stored, "facts": {"format": stored["facts"]["format"]}}, "a cache's description"),
        ({**stored, "more": 1}, "a cache's description"),
        ([1], "a cache's description"),
    ):
        place.write_text(json.dumps(broken))
        with pytest.raises(ManifestError, match=message):
            Cache.open(str(tmp_path / "cache"))
    with pytest.raises(ManifestError, match="at least one row with a video"):
        start(tmp_path / "x", Manifest(write_manifest([make_clip("a")], tmp_path / "m.parquet").path))


def test_another_cache_s_folder_is_left_alone(world: Manifest, tmp_path: Path) -> None:
    before = make(start(tmp_path / "cache", world, store="codes"))
    for other in ({"store": "features"}, {"store": "codes", "part_rows": 5}):
        with pytest.raises(
            ManifestError, match=f"{[*other][-1]}.* as the cache began.* Choose another folder or delete it"
        ):
            start(tmp_path / "cache", world, **other)
    assert Cache.open(str(tmp_path / "cache")) == before


def flip(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def test_damage_costs_the_samples_that_need_it(world: Manifest, tmp_path: Path) -> None:
    make(start(tmp_path / "cache", world, store="all"))
    opened = open_cache(tmp_path / "cache")
    second, third = opened.rows[1].address, opened.rows[2]
    assert second is not None
    flip(Path(second.file), second.offset + second.size // 2)
    (example,) = opened.source.samples([third])
    assert isinstance(example, Sample)
    image, unit = 3 * 28 * 28, 4 * 4 * 16
    flip(tmp_path / "cache/parts/00000/arrays", example.at + image + 2 * unit)  # type: ignore[attr-defined]

    first, bad, good, *_ = opened.source.samples(opened.rows)
    assert isinstance(bad, BadRow) and bad.clip_id == "row 1" and "other bytes" in str(bad.error)
    looks = [Look(first, [0], []), Look(good, [0, 1], []), Look(good, [0, 2], []), Look(first, [0, 1, 2], [])]  # type: ignore[arg-type]
    seen = list(opened.source.pictures(looks))
    assert [isinstance(one, UserError) for one in seen] == [False, False, True, False]
    assert "arrays" in str(seen[2]) and "Delete that part's folder and run `jala cache` again" in str(seen[2])
    laid, errors = lay_out(opened.source, opened.rows)
    assert {"row 1"} <= {error["clip_id"] for error in errors} <= {"row 1", "c"}
    assert len(laid) + len(errors) == len(opened.rows)

    shutil.rmtree(tmp_path / "cache/parts/00000")
    gone = opened.source.samples(opened.rows)
    assert [isinstance(one, BadRow) for one in gone] == [True] * 4 + [False] * 7
    make(start(tmp_path / "cache", world, store="all"))
    assert not lay_out(opened.source, opened.rows)[1], "the part was made again"

    flip(tmp_path / "cache/index.safetensors", -3)
    with pytest.raises(ManifestError, match="other bytes"):
        CacheIndex.read(opened.cache)
    make(start(tmp_path / "cache", world, store="all"))
    assert len(CacheIndex.read(opened.cache)) == 11


# --- making ----------------------------------------------------------------------------------------------------------


def times(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_rerun_makes_what_is_missing(world: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    making = start(path, world)
    assert numbers(making) == [0, 1, 2]
    second = making.missing()[1]
    assert making.job(second) == {"part": 1, "rows": 4, "left_out": 0}
    again = start(path, world)
    assert numbers(again) == [0, 2]
    before = times(path / "parts/00001")
    making.job(second)  # a task that runs twice
    whole = make(again)
    assert times(path / "parts/00001") == before
    content = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    shutil.rmtree(path / "parts/00002")
    (path / "parts/00002").mkdir()
    (path / "parts/00002/records").write_bytes(b"half")  # of a task that was killed
    finished = start(path, world)
    assert numbers(finished) == [2]
    assert make(finished) == whole
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == content
    assert numbers(start(path, world)) == []


def test_two_tasks_may_make_one_part(world: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    making, real = start(tmp_path / "cache", world, store="codes"), storage.upload_dir
    first = making.missing()[0]

    def late(*given: Any, **settings: Any) -> Any:
        monkeypatch.setattr(storage, "upload_dir", real)
        making.job(first)  # the twin is first
        return real(*given, **settings)

    monkeypatch.setattr(storage, "upload_dir", late)
    assert making.job(first) == {"part": 0, "rows": 4, "left_out": 0}
    make(making)


def test_unreadable_rows_are_left_out_with_reasons(world: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(Path(world.base).parent, folder)
    made = [replace(clip, packets=None) for clip in clips(str(folder))]
    manifest = Manifest(write_manifest(made, folder / "m.parquet").path)
    (folder / "videos/three.mp4").rename(folder / "videos/away.mp4")
    place = manifest.address(1)
    flip(folder / "m.rows", place.offset + place.size // 2)

    def rerun() -> Making:
        return start(tmp_path / "cache", manifest, part_rows=2)

    with pytest.raises(ManifestError, match=r"<= data.max_error_share = 10.0% of 11 rows\. Repair them.*--retry"):
        make(rerun(), share=0.1)
    with pytest.raises(ManifestError, match="a finished cache"):
        Cache.open(str(tmp_path / "cache"))
    reasons = [json.loads(line) for line in (tmp_path / "cache/errors.jsonl").read_text().splitlines()]
    assert [error["clip_id"] for error in reasons] == ["row 1", "f", "g", "h", "w"]
    assert [error["row"] for error in reasons] == [1, 7, 8, 9, 10]
    assert "other bytes" in reasons[0]["reason"] and "three.mp4" in reasons[1]["reason"]

    assert make(rerun(), share=0.5).rows == 6
    opened = open_cache(tmp_path / "cache")
    assert [row.index for row in opened.rows] == [0, 2, 3, 4, 5, 11]
    assert not lay_out(opened.source, opened.rows)[1]

    (folder / "videos/away.mp4").rename(folder / "videos/three.mp4")
    repaired = rerun()
    assert numbers(repaired) == []
    repaired.drop_errors()
    assert numbers(repaired) == [0, 3, 4]
    assert make(repaired, share=0.1).rows == 10
    assert [row.index for row in open_cache(tmp_path / "cache").rows] == [0, 2, 3, 4, 5, 7, 8, 9, 10, 11]


def test_features_that_halves_cannot_hold(world: Manifest, tmp_path: Path) -> None:
    making = start(tmp_path / "cache", world, dtype="float16")
    _, encoder = cache_making._open(making.job)
    assert encoder is not None
    with torch.no_grad():
        encoder.model.norm.weight.fill_(1e6)
    try:
        with pytest.raises(ManifestError, match=r"infinity or NaN.*Pass --dtype float32"):
            make(making, share=0.9)
    finally:
        cache_making._open.cache_clear()


def test_the_preprocessing_version_names_what_it_makes(world: Manifest) -> None:
    """Where this fails on purpose, raise `cache.PREPROCESSING_VERSION`: caches hold codes and features of the old numbers."""
    features, labelled = chunk_features(make_clip("a", 3.0))
    assert labelled.all()
    expected = [[0.36453, 0.43065, 0.47195], [0.36161, 0.42448, 0.46742]]
    np.testing.assert_allclose(np.abs(features).mean(axis=(2, 3)), expected, atol=1e-4)
    np.testing.assert_allclose(features[1, 2, 14, -3:], [-0.27503, 0.95078, -0.14276], atol=1e-4)
    pictures = clip_frames(world.clip(0), {"image": ((28, 28), [0, 1, 3])})["image"]
    shown = [[75.1, 93.5, 0.5], [106.9, 125.4, 32.0], [106.9, 125.4, 32.0]]
    np.testing.assert_allclose(pictures.mean(axis=(2, 3)), shown, atol=1.0)
    assert PREPROCESSING_VERSION == 2


def test_a_folder_s_facts_tell_caches_apart(world: Manifest, tmp_path: Path) -> None:
    """Every fact counts: two caches that differ in one are never taken for one another."""
    cache = start(tmp_path / "cache", world, store="all").job.cache
    facts = cache.facts
    for name, value in vars(facts).items():
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else f"{value}x"
        with pytest.raises(ManifestError, match=f"cache: {name}: got {other!r}, expected {value!r}"):
            replace(cache, facts=replace(facts, **{name: other})).claim().take()
    assert facts == CacheFacts(**vars(facts))


# --- in a bucket -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(s3_endpoint: str) -> StorageOptions:
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="lab")
    return StorageOptions(endpoint_url=s3_endpoint)


@pytest.mark.parametrize("store", ["codes", "all"])
def test_everything_in_a_bucket(world: Manifest, tmp_path: Path, bucket: StorageOptions, store: str) -> None:
    for video in (Path(world.base).parent / "videos").iterdir():
        storage.write_bytes(f"s3://lab/world/videos/{video.name}", video.read_bytes(), options=bucket)
    path, surroundings = f"s3://lab/caches/{store}", dict(os.environ)
    remote = write_world("s3://lab/world", bucket)
    making = start(path, remote, store=store, options=bucket)
    making.job(making.missing()[0])
    making = start(path, remote, store=store, options=bucket)
    assert numbers(making) == [1, 2]
    make(making)
    opened = open_cache(path, options=bucket)
    if store == "all":  # no video is needed any more
        for name in ("one", "two", "three"):
            storage.delete(f"s3://lab/world/videos/{name}.mp4", bucket)
    laid, errors = lay_out(opened.source, opened.rows)
    assert not errors
    make(start(tmp_path / "local", world, store=store))
    here = open_cache(tmp_path / "local")
    expected, _ = lay_out(here.source, here.rows)
    same_samples(laid, expected)
    for one, other in zip(laid, expected, strict=True):
        for name in ("frames", "features"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert os.environ == surroundings, "how the bucket is reached goes with what is opened"


def test_rows_of_a_bucket_need_no_environment(world: Manifest, tmp_path: Path, bucket: StorageOptions) -> None:
    """A process that opens two stores would have one environment for both."""
    for video in (Path(world.base).parent / "videos").iterdir():
        storage.write_bytes(f"s3://lab/world/videos/{video.name}", video.read_bytes(), options=bucket)
    remote, surroundings = write_world("s3://lab/world", bucket), dict(os.environ)
    config, assets, _ = parts_of("tiny")
    assets.save(tmp_path / "assets")
    storage.upload_dir(tmp_path / "assets", "s3://lab/assets", bucket)
    found = catalogue(remote, DataConfig(), "train")
    builder = ShareBuilder(config, OpenManifest(remote.base, "s3://lab/assets", bucket), 0)
    laid, errors = builder.lay_out(plan_rows(found.place, found.files, 0, 0), 0)
    assert len(laid) == len(found.place) and not errors and os.environ == surroundings
