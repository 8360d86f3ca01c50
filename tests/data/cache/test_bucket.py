"""Caches in a bucket, and what reads them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from jala_ray import storage
from jala_ray.config import DataConfig
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.samples.steps import OpenManifest, ShareBuilder
from jala_ray.data.sampling.catalogue import catalogue
from jala_ray.data.sampling.plan import plan_rows
from jala_ray.storage import StorageOptions
from tests.data.cache.worlds import lay_out, make, numbers, open_cache, parts_of, same_samples, start, write_world


@pytest.mark.parametrize("store", ["codes", "all"])
def test_everything_in_a_bucket(world: Manifest, tmp_path: Path, bucket: StorageOptions, store: str) -> None:
    for video in (Path(world.base).parent / "videos").iterdir():
        storage.write_bytes(f"s3://lab/world/videos/{video.name}", video.read_bytes(), options=bucket)
    make(
        start(tmp_path / "local", world, store=store)
    )  # first: torch, once loaded, says in the environment where it caches
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
    here = open_cache(tmp_path / "local")
    expected, _ = lay_out(here.source, here.rows)
    same_samples(laid, expected)
    for one, other in zip(laid, expected, strict=True):
        assert one.pictures.keys() == other.pictures.keys()
        for name, array in one.pictures.items():
            np.testing.assert_array_equal(array, other.pictures[name])
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
    laid, errors = builder.lay_out(plan_rows(found.place, found.files, 0, range(len(found))), 0)
    assert len(laid) == len(found.place) and not errors and os.environ == surroundings
