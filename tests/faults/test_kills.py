"""SIGKILL while a run saves, starts and trains: always a whole newest checkpoint, and nothing left behind after the next start."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.rgw import ObjectStore
from tests.faults.kills import Moment
from tests.faults.trials import Trials

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]
MOMENTS = {
    "save": Moment(number=1, of=r"step-00000004[^/]*/\.?model\.safetensors"),
    "start": Moment(number=1, of=r"step-00000002/optimizer\.pt"),
    "step": Moment(logged=5),
}
"""One after another: with half of the second checkpoint written, as the next attempt reads the first one, and between two saves."""


@pytest.mark.parametrize("on_store", [False, True], ids=["disk", "store"])
def test_kills_at_chosen_moments(
    gateway: ObjectStore, module_keys: None, raw_world: Path, tokenizer: str, tmp_path: Path, on_store: bool
) -> None:
    trials = Trials(gateway, raw_world, tmp_path)
    figures = trials.chosen_kills(list(MOMENTS.values()), tokenizer, on_store=on_store)
    save, start, step = figures["moments"]
    assert [save["within"], start["within"], step["within"]] == list(MOMENTS)
    assert [kill["logged"] for kill in figures["moments"]] == [4, 0, 5]
    assert [kill["newest"] for kill in figures["moments"]] == [2, 2, 4]
    assert save["left"], "a save was cut off"
