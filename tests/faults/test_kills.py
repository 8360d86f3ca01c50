"""SIGKILL while a run saves, starts and trains: always a whole newest checkpoint, and nothing left behind after the next start."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.rgw import ObjectStore
from tests.faults.trials import Trials

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]
KILLS = 3


@pytest.mark.parametrize("on_store", [False, True], ids=["disk", "store"])
def test_kills_at_seeded_moments(
    gateway: ObjectStore, module_keys: None, raw_world: Path, tokenizer: str, tmp_path: Path, on_store: bool
) -> None:
    figures = Trials(gateway, raw_world, tmp_path).kills(KILLS, 1, tokenizer, on_store=on_store)
    assert figures["kills"] == KILLS and figures["that left something"], "a kill met a save"
