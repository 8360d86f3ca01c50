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
    "start": Moment(number=0, of=r"step-00000002/optimizer\.safetensors"),
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
    assert [save["within"], start["within"]] == ["save", "start"]
    assert save["logged"] >= 4, "steps go on while the checkpoint is written"
    assert [start["logged"], step["logged"]] == [0, 5]
    assert [save["newest"], start["newest"]] == [2, 2] and step["newest"] in (2, 4), (
        "the save of step 4 may be under way"
    )
    assert save["left"], "a save was cut off"


BEHIND = (
    Moment(number=0, of=r"step-00000002[^/]*/\.?PART-00000\.json"),
    Moment(number=2, of=r"step-00000004[^/]*/\.?optimizer\.safetensors"),
    Moment(number=0, of=r"step-00000004[^/]*/\.?COMMIT\.json\.[0-9a-f]"),
)
"""As a save opens its folder, in the middle of a file, and right before the marker."""


def test_kills_while_a_checkpoint_is_written_behind(
    gateway: ObjectStore, module_keys: None, raw_world: Path, tokenizer: str, tmp_path: Path
) -> None:
    figures = Trials(gateway, raw_world, tmp_path).chosen_kills(list(BEHIND), tokenizer, on_store=False)
    assert [kill["within"] for kill in figures["moments"]] == ["save"] * 3
    assert [kill["newest"] for kill in figures["moments"]] == [0, 2, 2]
