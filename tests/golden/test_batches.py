"""Batches of older trees, as columns of now."""

from __future__ import annotations

import pytest
import torch

from jala_ray.presets import PRESETS
from tests.golden.batches import columns
from tests.golden.runs import RUNS
from tests.support import void_batch


def test_a_batch_of_now_is_its_tensors() -> None:
    batch = void_batch(1, 4, 1)
    assert columns(batch).keys() == batch.tensors().keys()


def old(**given: torch.Tensor) -> dict[str, torch.Tensor]:
    void = torch.full((2, 4), -1)
    flags = {"scored": void > 0, "state": void > 0}
    return {"sample": void * 0, "block": void, "image_k": void, "text_target": void, "pair": void, **flags, **given}


def test_chunks_become_intervals() -> None:
    sample = torch.tensor([[0, 0, 0, 0, 1, 1, -1, -1], [2, 2, 2, 2, 2, 2, 2, 2]])
    block = torch.tensor([[-1, 3, 3, -1, 3, 3, -1, -1], [-1] * 8])
    wide = {name: column.repeat(1, 2) for name, column in old().items()}
    found = columns(wide | {"sample": sample, "block": block})
    assert "block" not in found and found["lo"].tolist() == [[0, 0, 0, 0, 4, 4, 6, 6], [0] * 8]
    assert found["hi"].tolist() == [[1, 3, 3, 4, 6, 6, 7, 8], [*range(1, 9)]]
    with pytest.raises(ValueError, match="no interval"):
        columns(old(block=torch.tensor([[3, -1, -1, 3], [-1] * 4])))


@pytest.mark.parametrize(
    ("reads", "read"), [("scored", [2, 3, 7]), ("before", [1, 3, 6]), ("aligned", [3, 5]), ("none", [3])]
)
def test_flags_become_lists(reads: str, read: list[int]) -> None:
    flags = torch.zeros(2, 4, dtype=torch.bool)
    flags[0, 2] = flags[1, 3] = True
    text, pair = torch.full((2, 4), -1), torch.full((2, 4), -1)
    text[0, 3], pair[1, 1] = 7, 0
    found = columns(old(scored=flags, state=~flags, text_target=text, pair=pair), reads)
    lists = {name: t.tolist() for name, t in found.items() if name.endswith("_at")}
    assert lists == {
        "scored_at": [2, 7],
        "state_at": [0, 1, 3, 4, 5, 6],
        "text_at": [3],
        "pair_at": [5],
        "image_at": [],
        "read_at": read,
    }


def test_every_run_says_what_its_objective_reads() -> None:
    for run in RUNS:
        assert run.reads == PRESETS[run.preset].objective.layout.reads, run.name
