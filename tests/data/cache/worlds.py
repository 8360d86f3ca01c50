"""A small world with every kind of row, caches of it, and samples laid out from either."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jala_ray.config import DataConfig, RunConfig
from jala_ray.data.cache.folder import Cache, CacheIndex
from jala_ray.data.cache.making import Contents, Making, begin
from jala_ray.data.cache.source import CacheSource
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.samples.assets import Assets
from jala_ray.data.samples.layout import Laid
from jala_ray.data.samples.source import ManifestSource, Source
from jala_ray.data.samples.steps import ShareBuilder
from jala_ray.data.sampling.plan import PlanRow, plan_rows
from jala_ray.presets import PRESETS
from jala_ray.storage import StorageOptions
from jala_ray.training.learner import Learner
from jala_ray.types import Clip, HandState, HandTrack
from jala_ray.video.frames import index_boundaries
from jala_ray.video.packets import PacketScan
from tests.data.test_source import make_clip
from tests.support import make_assets, make_learner, small

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


@cache
def parts_of(preset: str) -> tuple[RunConfig, Assets, Learner]:
    config = small(PRESETS[preset])
    assets = make_assets(config)
    return config, assets, make_learner(config, assets).eval()


def start(path: Path | str, manifest: Manifest, preset: str = "tiny", **settings: Any) -> Making:
    config, assets, _ = parts_of(preset)
    options, gpu = settings.pop("options", NO_OPTIONS), settings.pop("gpu", False)
    contents = Contents(**{"store": "features", "dtype": "float32", "part_rows": 4} | settings)
    return begin(str(path), manifest, assets, config.model.encoder, contents, options, gpu=gpu)


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
    rows = [row for one in found for row in plan_rows(one.place, one.files, 0, range(len(one)))]
    layout = config.objective.layout
    source = CacheSource(cache, base or cache.base, assets, options, layout.frames, layout.pixels)
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
        assert one.boundaries == other.boundaries and one.pairs == other.pairs
        np.testing.assert_array_equal(one.images, other.images)
        for name, column in other.columns.items():
            np.testing.assert_array_equal(one.columns[name], column)
