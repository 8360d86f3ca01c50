"""A real S3 server, Ceph's gateway, as processes of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from benchmarks.rgw import ObjectStore, missing

BUCKETS = itertools.count()


@dataclass(frozen=True)
class Bucket:
    """An empty bucket; the keys to it are in the environment, the endpoint is not."""

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


@pytest.fixture
def bucket(gateway: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REQUEST_CHECKSUM_CALCULATION"):
        monkeypatch.setenv(name, "")  # restored afterwards: a job sets them for its process
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, gateway.environment[name])
    name = f"bucket{next(BUCKETS)}"
    gateway.client().create_bucket(Bucket=name)
    return Bucket(gateway.endpoint, name)
