"""Robot sets on a bucket: the same samples and pictures, by ranged reads."""

from __future__ import annotations

from pathlib import Path

import boto3
import numpy as np
import pytest

from jala_ray import storage
from jala_ray.data.robots.info import is_robot_set
from jala_ray.data.samples.source import Look, Sample
from jala_ray.storage import StorageOptions
from jala_ray.types import UserError
from tests.data.robots.made import FRONT, PATHS, WRIST, opened, rows_of, write_set
from tests.data.robots.recipe import plans_of, settings


@pytest.mark.parametrize("version", PATHS)
def test_a_bucket_gives_what_a_folder_gives(tmp_path: Path, s3_endpoint: str, version: str) -> None:
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="lab")
    options, folder = StorageOptions(endpoint_url=s3_endpoint), write_set(tmp_path / "arm", version)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        storage.write_bytes(f"s3://lab/sets/arm/{path.relative_to(folder)}", path.read_bytes(), options)
    assert is_robot_set("s3://lab/sets/arm", options) and not is_robot_set("s3://lab/sets", options)
    found = []
    for source in (opened(folder), opened("s3://lab/sets/arm", options=options)):
        samples = [one for one in source.samples(rows_of(source.sets)[::7]) if isinstance(one, Sample)]
        looks = [Look(one, views={FRONT: (one.at_s or 0.0,), WRIST: (one.at_s or 0.0,)}) for one in samples]
        found.append((samples, list(source.pictures(looks))))
    (here, seen_here), (there, seen_there) = found
    assert len(here) == len(there) == 8
    for one, other in zip(here, there, strict=True):
        assert (one.clip_id, one.at_s, one.instructions) == (other.clip_id, other.at_s, other.instructions)
        np.testing.assert_array_equal(one.signals["action"].values, other.signals["action"].values)
    for one, other in zip(seen_here, seen_there, strict=True):
        assert isinstance(one, dict) and isinstance(other, dict)
        np.testing.assert_array_equal(one["image"], other["image"])
    config = settings("s3://lab/sets/arm", storage__endpoint_url=s3_endpoint)
    plans = plans_of(config, tmp_path)
    storage.delete(plans.train.builder.source.sets.sets[0].film(WRIST, 0)[0], options)
    shares = list(plans.train.stream(range(plans.train.plan.steps_per_epoch), 0, 1))
    assert any(share.errors for share in shares) and all(
        "no such file" in e["reason"] for s in shares for e in s.errors
    )


def test_a_folder_of_a_bucket_without_a_set_is_told(s3_endpoint: str) -> None:
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="lab")
    with pytest.raises(UserError, match=r"s3://lab/nothing/meta/info\.json"):
        opened("s3://lab/nothing", options=StorageOptions(endpoint_url=s3_endpoint))
