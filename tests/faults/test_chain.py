"""The whole chain while the store stumbles: what it leaves is what it leaves without faults, bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.rgw import ObjectStore
from tests.faults.trials import Trials

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def trials(
    gateway: ObjectStore, module_keys: None, raw_world: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trials:
    return Trials(gateway, raw_world, tmp_path_factory.mktemp("trials"))


def test_a_tenth_of_all_requests_fails(trials: Trials) -> None:
    assert trials.tenth(seed=14)["samples"] == 48


def test_outages_at_the_start_and_in_the_middle(trials: Trials) -> None:
    assert trials.outages(5.0)["requests refused"] > 4


def test_a_store_that_does_not_come_back(trials: Trials) -> None:
    assert "an answer within 6 s" in trials.gone(patience_s=6.0, within_s=30.0)["said"]
