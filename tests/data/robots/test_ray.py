"""Ray Data gives every rank the shares that the path without Ray gives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

from jala_ray.data.pipeline import Segment, UnitConfig, begins_with, read_shares
from jala_ray.data.samples.share import StepShare
from tests.data.robots.made import write_set
from tests.data.robots.recipe import plans_of, settings
from tests.ray_start import local_ray
from tests.support import same_batch


@pytest.mark.cluster
def test_shares_of_ray_are_those_without_it(tmp_path: Path) -> None:
    folders = [write_set(tmp_path / version, version) for version in ("v2.1", "v3.0")]
    train = plans_of(settings(*folders), tmp_path).train
    first, last, world = 3, train.plan.steps_per_epoch + 2, 2  # a resumed segment, and into the next epoch
    with local_ray():
        segments = UnitConfig({"train": lambda: Segment(train, first, last, 2, "step-00000003")})
        shards = segments.configure({"train": None}, world)

        there = [begins_with(ray.get(ray.put(shard["train"]))) for shard in shards]
        assert there == ["step-00000003"] * world, "every rank is told, in another process too"

        def read(rank: int) -> list[StepShare]:
            return list(read_shares(shards[rank]["train"], first, last, rank))

        with ThreadPoolExecutor(world) as pool:
            found = list(pool.map(read, range(world)))
        for rank, shares in enumerate(found):
            for one, other in zip(shares, train.stream(range(first, last), rank, world), strict=True):
                assert (one.step, one.rows, one.errors) == (other.step, other.rows, other.errors)
                for mine, theirs in zip(one.micro, other.micro, strict=True):
                    same_batch(mine, theirs)
