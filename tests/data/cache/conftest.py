"""The world that caches are made of."""

from __future__ import annotations

import boto3
import pytest

from jala_ray.data.manifest.table import Manifest
from jala_ray.storage import StorageOptions
from jala_ray.video.write import write_mp4
from tests.data.cache.worlds import write_world
from tests.video.numbered import numbered


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("world")
    (folder / "videos").mkdir()
    for number, name in enumerate(("one", "two", "three")):
        write_mp4(folder / "videos" / f"{name}.mp4", numbered(120, first=10 * number), 30, gop=10, preset="ultrafast")
    return write_world(str(folder))


@pytest.fixture
def bucket(s3_endpoint: str) -> StorageOptions:
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="lab")
    return StorageOptions(endpoint_url=s3_endpoint)
