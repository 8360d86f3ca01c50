"""A share's way through one Arrow cell."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch

from jala_ray.data.blocks import BLOCKS_PER_READ, BlockNumbers
from jala_ray.data.pipeline import explained, share_views, shares_column
from jala_ray.data.samples.share import ALIGNED, StepShare
from jala_ray.training.local import loader
from jala_ray.types import StoreUnavailable
from tests.support import packed, same_batch, void_batch


def share(step: int, rows: int) -> StepShare:
    generator = torch.Generator().manual_seed(step)
    batch = void_batch(
        *(rows, 5, rows),
        ids=torch.randint(0, 99, (rows, 5), generator=generator),
        frames=torch.randint(0, 255, (rows, 3, 4, 4), generator=generator).to(torch.uint8),
        scored_at=torch.arange(rows),
        first_features=torch.rand(rows, 3, 2, generator=generator).half(),
        weight=torch.rand(rows, generator=generator),
        pairs=torch.zeros(0, 2, dtype=torch.int64),
    )
    other = replace(batch, ids=batch.ids + 1, frames=None)
    return StepShare(step, [batch, other], rows, [{"clip_id": "a", "reason": "é"}])


def same(a: StepShare, b: StepShare) -> None:
    assert (a.step, a.rows, a.errors, len(a.micro)) == (b.step, b.rows, b.errors, len(b.micro))
    for mine, theirs in zip(a.micro, b.micro, strict=True):
        same_batch(mine, theirs)


def test_shares_come_back_as_they_went() -> None:
    for step, rows in ((0, 3), (7, 1), (8, 64)):
        made = share(step, rows)
        same(made, StepShare.from_buffer(packed(made)))


def test_the_bytes_are_safetensors_and_a_few_to_align_the_next() -> None:
    payload = bytes(packed(share(3, 2)))
    (length,) = struct.unpack_from("<Q", payload)
    header = json.loads(payload[8 : 8 + length])
    end = 8 + length + max(entry["data_offsets"][1] for entry in header.values())
    assert 0 <= len(payload) - end < ALIGNED and len(payload) % ALIGNED == 0
    found = safetensors.torch.load(payload[:end])
    assert torch.equal(found["0/frames"], share(3, 2).micro[0].frames)


def test_a_row_holds_its_shares_as_views_of_one_buffer() -> None:
    made = [share(1, 3), share(2, 5)]
    rows = pa.chunked_array([shares_column([one.parcel() for one in made]), shares_column([made[1].parcel()])])
    first, second = (list(share_views(row)) for row in rows)
    for one, cell in zip([*made, made[1]], [*first, *second], strict=True):
        same(one, StepShare.from_buffer(cell))
    begin = [np.frombuffer(cell, np.uint8).__array_interface__["data"][0] for cell in first]
    assert begin[1] - begin[0] == len(first[0]) and len(first[0]) % ALIGNED == 0


@pytest.mark.parametrize("blocks", [0, 1, BLOCKS_PER_READ, 2 * BLOCKS_PER_READ + 88])
def test_few_tasks_number_many_blocks(blocks: int) -> None:
    tasks = BlockNumbers(blocks).get_read_tasks()
    assert len(tasks) == -(-blocks // BLOCKS_PER_READ)
    found = [table["block"].to_pylist() for task in tasks for table in task()]
    assert found == [[number] for number in range(blocks)]
    assert sum(task.metadata.num_rows or 0 for task in tasks) == blocks


def test_what_rays_own_processes_load_is_light() -> None:
    code = "import sys, jala_ray.data.blocks; print(*{'torch', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "\n"


class Given:
    """In the place of a `StepBuilder`: shares that are there."""

    def stream(self, steps: Iterable[int], rank: int, world: int) -> Iterator[StepShare]:
        yield from (share(step, 2) for step in steps)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_share_leaves_a_worker_as_one_tensor_and_comes_back_as_it_was(workers: int) -> None:
    found = list(loader(Given(), 3, 8, workers))  # type: ignore[arg-type]
    for step, one in zip(range(3, 8), found, strict=True):
        same(one, share(step, 2))
    whole = share(1, 2).parcel().tensor()
    assert whole.is_shared() and whole.dtype == torch.uint8
    same(share(1, 2), StepShare.from_buffer(whole.numpy().data))


def test_an_error_that_explains_itself_is_no_cause_of_its_own() -> None:
    error = StoreUnavailable("store", "nothing", "an answer")

    def stream(raised: Exception) -> Iterator[int]:
        yield 1
        raise raised

    with pytest.raises(StoreUnavailable) as caught:
        list(explained(stream(error)))
    assert caught.value is error and error.__cause__ is None
    wrapped = RuntimeError("a task failed")
    wrapped.__cause__ = error
    with pytest.raises(StoreUnavailable) as caught:
        list(explained(stream(wrapped)))
    assert caught.value is error and error.__cause__ is wrapped
