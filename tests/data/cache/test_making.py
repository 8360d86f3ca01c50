"""A cache is made part by part, refuses what is stale, and says what is damaged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jala_ray import storage
from jala_ray.data.cache import making as cache_making
from jala_ray.data.cache.folder import PREPROCESSING_VERSION, Cache, CacheFacts, CacheIndex
from jala_ray.data.cache.making import Making, manifest_key
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.samples.assets import tokenizer_key
from jala_ray.data.samples.source import BadRow, Look, Sample
from jala_ray.hands.resample import chunk_features
from jala_ray.models.frame_encoder import encoder_key
from jala_ray.types import ManifestError, UserError
from jala_ray.video.frames import clip_frames
from tests.data.cache.worlds import clips, lay_out, make, numbers, open_cache, parts_of, start
from tests.data.test_source import make_clip

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
