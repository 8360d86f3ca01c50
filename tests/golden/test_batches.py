"""Batches of older trees, as columns of now."""

from __future__ import annotations

import pytest
import torch

from tests.golden.batches import columns
from tests.support import void_batch


def test_a_batch_of_now_is_its_tensors() -> None:
    batch = void_batch(1, 4, 1)
    assert columns(batch).keys() == batch.tensors().keys()


def test_chunks_become_intervals() -> None:
    sample = torch.tensor([[0, 0, 0, 0, 1, 1, -1, -1]])
    block = torch.tensor([[-1, 3, 3, -1, 3, 3, -1, -1]])
    found = columns({"sample": sample, "block": block})
    assert found.keys() == {"sample", "lo", "hi"}
    assert found["lo"].tolist() == [[0, 0, 0, 0, 4, 4, 6, 6]] and found["hi"].tolist() == [[1, 3, 3, 4, 6, 6, 7, 8]]
    with pytest.raises(ValueError, match="no interval"):
        columns({"sample": sample * 0, "block": torch.tensor([[3, -1, -1, 3, -1, -1, -1, -1]])})
