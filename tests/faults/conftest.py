"""A real S3 server, Ceph's gateway, as processes of their own, and a small world."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.rgw import ObjectStore, missing
from jala_ray.data.synthetic import generate
from tests.end_to_end.conftest import train_quickly
from tests.faults.chain import WORLD

BUCKETS = itertools.count()


@dataclass(frozen=True)
class Bucket:
    """An empty one, reached with the environment's keys."""

    endpoint: str
    name: str

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """Takes some 15 s to start; skipped where Ceph is not installed (`.ci/run` installs it)."""
    if absent := missing():
        pytest.skip(f"no {', '.join(absent)}: install Debian's packages radosgw, ceph-mon, ceph-osd and ceph-common")
    with ObjectStore(tmp_path_factory.mktemp("gateway") / "ceph") as store:
        yield store


@pytest.fixture(scope="module")
def module_keys(gateway: ObjectStore) -> Iterator[None]:
    """Keys to the gateway in the environment, for fixtures of a module; the endpoint is not there."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REQUEST_CHECKSUM_CALCULATION"):
            patch.setenv(name, "")  # restored afterwards: a job sets them for its process
            patch.delenv(name)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, gateway.environment[name])
        yield


@pytest.fixture
def bucket(gateway: ObjectStore, module_keys: None) -> Bucket:
    name = f"bucket{next(BUCKETS)}"
    gateway.client().create_bucket(Bucket=name)
    return Bucket(gateway.endpoint, name)


@pytest.fixture(scope="session")
def raw_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of labelled raw clips with their manifest."""
    folder = tmp_path_factory.mktemp("raw")
    generate(folder, WORLD)
    return folder


@pytest.fixture(scope="session")
def tokenizer(raw_world: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of that world, trained for a moment."""
    manifest = str(raw_world / "manifest.parquet")
    return train_quickly((manifest,), tmp_path_factory.mktemp("tokenizer") / "tokenizer", steps=20)
