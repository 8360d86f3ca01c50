"""The whole chain while the store stumbles: what it leaves is what it leaves without faults, bit by bit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.rgw import ObjectStore
from jala_ray import storage
from jala_ray.storage import StorageOptions
from jala_ray.training import history
from tests.faults.chain import Chain, Outcome, put_raw_world
from tests.faults.conftest import Bucket
from tests.faults.processes import Command
from tests.faults.proxy import FaultProxy

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]
PATIENCE_S = 6.0


@pytest.fixture(scope="module")
def unbroken(
    gateway: ObjectStore, raw_world: Path, tmp_path_factory: pytest.TempPathFactory, module_keys: None
) -> tuple[Chain, Outcome]:
    """A chain over a store without faults."""
    direct = StorageOptions(endpoint_url=gateway.endpoint)
    gateway.client().create_bucket(Bucket="unbroken")
    put_raw_world(raw_world, "s3://unbroken", direct)
    chain = Chain("s3://unbroken", gateway.environment, tmp_path_factory.mktemp("unbroken"))
    chain.all()
    outcome = chain.outcome(direct)
    assert outcome.metrics[-1]["samples"] == 4 * chain.steps and outcome.errors == 0, "all rows are good ones"
    return chain, outcome


def test_a_tenth_of_all_requests_fails(
    unbroken: tuple[Chain, Outcome], bucket: Bucket, raw_world: Path, tmp_path: Path
) -> None:
    """Five kinds of fault, mixed, from preparation to scores, with a SIGKILL between two checkpoints of the training."""
    direct = StorageOptions(endpoint_url=bucket.endpoint)
    put_raw_world(raw_world, bucket.uri, direct)
    with FaultProxy(bucket.endpoint, seed=14, rate=0.1, stall_s=0.5) as proxy:
        chain = Chain(bucket.uri, {"AWS_ENDPOINT_URL": proxy.endpoint}, tmp_path)
        chain.all(kill_at=[6])
        assert set(proxy.plan.counts) == {"error", "reset", "stall", "truncate", "lost"}, proxy.plan.state()
    assert chain.outcome(direct) == unbroken[1]


def beside(unbroken: Chain, proxy: FaultProxy, name: str, logs: Path, patience_s: float = 180.0) -> Chain:
    """Another run over what the unbroken chain prepared."""
    return Chain(unbroken.root, {"AWS_ENDPOINT_URL": proxy.endpoint}, logs, name=name, patience_s=patience_s)


def test_outages_at_the_start_and_in_the_middle(
    unbroken: tuple[Chain, Outcome], bucket: Bucket, tmp_path: Path
) -> None:
    """Of 5 s each: a run that asks a store that is not there yet waits, and so does one whose store goes away."""
    direct = StorageOptions(endpoint_url=bucket.endpoint)
    with FaultProxy(bucket.endpoint) as proxy:
        chain = beside(unbroken[0], proxy, "outages", tmp_path)
        proxy.plan.begin_outage(5)
        command = chain.begin()
        for line in command.lines():
            if line.startswith("step 5/"):
                assert not proxy.plan.gone
                proxy.plan.begin_outage(5)
        assert command.wait() == 0, command.output
        assert proxy.plan.counts["outage"] > 4
    assert chain.metrics(direct) == unbroken[1].metrics
    assert chain.weights(direct) == unbroken[1].weights


def test_a_store_that_does_not_come_back(unbroken: tuple[Chain, Outcome], bucket: Bucket, tmp_path: Path) -> None:
    """The run ends when its patience does, says why, leaves its last checkpoint whole, and can be started again."""
    direct = StorageOptions(endpoint_url=bucket.endpoint)
    with FaultProxy(bucket.endpoint) as proxy:
        chain = beside(unbroken[0], proxy, "gone", tmp_path, patience_s=PATIENCE_S)
        command, began = chain.begin(), 0.0
        for line in command.lines():
            if line.startswith("step 6/"):
                proxy.plan.begin_outage(600)
                began = time.monotonic()
        assert began and command.wait() == 1
        assert time.monotonic() - began < 5 * PATIENCE_S
        check_says_why(command, proxy)
        assert history.newest(chain.folder, direct) == history.address(chain.folder, 4)
        storage.verify_dir(history.address(chain.folder, 4), direct)
        proxy.plan.begin_outage(0)
        chain.pretrain()
    assert chain.metrics(direct) == unbroken[1].metrics
    assert chain.weights(direct) == unbroken[1].weights


def check_says_why(command: Command, proxy: FaultProxy) -> None:
    """One line at the end with address, endpoint, first cause and what to do; no stack."""
    *_, last = command.output.strip().splitlines()
    assert last.startswith("error: ") and proxy.endpoint in last and "s3://unbroken/" in last, last
    causes = (
        "InternalError",
        "ServiceUnavailable",
        "SlowDown",
        "ConnectionClosed",
        "ConnectionReset",
        "EndpointConnection",
    )
    assert any(cause in last for cause in causes), last
    assert f"{PATIENCE_S:.0f} s" in last and "Traceback" not in command.output, command.output
