"""SIGKILL while a run saves, starts and trains: always a whole newest checkpoint, and nothing left behind after the next start."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.rgw import ObjectStore
from jala_ray.storage import StorageOptions
from tests.faults.conftest import Bucket
from tests.faults.kills import Campaign, killed_config
from tests.faults.proxy import FaultProxy

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]
KILLS = 3


def test_on_disk(raw_world: Path, tokenizer: str, tmp_path: Path) -> None:
    config = killed_config(str(raw_world / "manifest.parquet"), tokenizer, str(tmp_path / "runs"))
    campaign = Campaign(config, tmp_path, seed=1)
    campaign.run(KILLS)
    assert any(kill.left for kill in campaign.kills), "a kill met a save"


def test_on_a_store(gateway: ObjectStore, bucket: Bucket, raw_world: Path, tokenizer: str, tmp_path: Path) -> None:
    config = killed_config(str(raw_world / "manifest.parquet"), tokenizer, f"{bucket.uri}/runs")
    with FaultProxy(bucket.endpoint) as proxy:
        direct = StorageOptions(endpoint_url=bucket.endpoint)
        campaign = Campaign(config, tmp_path, seed=1, proxy=proxy, client=gateway.client(), direct=direct)
        campaign.run(KILLS)
    assert any(kill.left for kill in campaign.kills), "a kill met a save"
