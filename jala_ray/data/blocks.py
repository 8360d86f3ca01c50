"""What Ray Data's own processes load of ours: the numbers of blocks, what they are numbers of, and a stage that is handed on unopened.

Neither torch nor transformers is imported here: the coordinator of a run's splits and the tasks that number blocks would each spend
seconds and most of a gigabyte on them, at every start of a worker group.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pyarrow as pa
import ray
import ray.data
from ray import cloudpickle
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

BLOCKS_PER_READ = 256
"""Blocks whose numbers one task of `BlockNumbers` hands on."""
SLAB_ITEMS = 64
"""Items of one object of `StoredItems`."""

T = TypeVar("T")


class BlockNumbers(ray.data.Datasource):
    """0 .. blocks - 1, each a block of its own, from few tasks: Ray's own range keeps a read task a block in its store (0.4 ms and
    3.8 kB each before the first block is read, for all blocks of the rest of a run)."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks

    def estimate_inmemory_data_size(self) -> int:
        return 8 * self.blocks

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        parts = [range(at, min(at + BLOCKS_PER_READ, self.blocks)) for at in range(0, self.blocks, BLOCKS_PER_READ)]
        return [
            ReadTask(
                lambda part=part: (pa.table({"block": pa.array([number], pa.int64())}) for number in part),
                BlockMetadata(num_rows=len(part), size_bytes=8 * len(part), input_files=None, exec_stats=None),
            )
            for part in parts
        ]


def numbered(blocks: int) -> ray.data.Dataset:
    """A dataset of `BlockNumbers`. What comes of one row stays one block, in all that follows."""
    at_once = min(2, -(-blocks // BLOCKS_PER_READ)) or None
    # Without a CPU it waits for none, takes none from what follows, and is not made one task with it.
    dataset = ray.data.read_datasource(BlockNumbers(blocks), num_cpus=0, concurrency=at_once)
    dataset.context.target_max_block_size = 1  # bytes
    return dataset


@dataclass(frozen=True)
class StoredItems(Generic[T]):
    """A sequence in Ray's object store, `SLAB_ITEMS` an object: a task unpickles the one that holds its item, however many there are."""

    slabs: tuple[ray.ObjectRef, ...]

    @classmethod
    def put(cls, items: Sequence[T]) -> StoredItems[T]:
        return cls(tuple(ray.put(list(items[at : at + SLAB_ITEMS])) for at in range(0, len(items), SLAB_ITEMS)))

    def __getitem__(self, number: int) -> T:
        slab, at = divmod(number, SLAB_ITEMS)
        return ray.get(self.slabs[slab])[at]


class Unopened:
    """`stage(batch, stored)`, unpickled where a batch is: once a process, whatever hands it on.

    `stored` are references into Ray's store; they stay outside of what is pickled, since Ray counts those that it sees.
    """

    def __init__(self, stage: Callable[[Any, Sequence[ray.ObjectRef]], Any], stored: Sequence[ray.ObjectRef]) -> None:
        self.pickled, self.stored = cloudpickle.dumps(stage), list(stored)

    def __call__(self, batch: Any) -> Any:
        return _opened(self.pickled)(batch, self.stored)


@functools.lru_cache(maxsize=2)
def _opened(pickled: bytes) -> Callable[[Any, Sequence[ray.ObjectRef]], Any]:
    return cloudpickle.loads(pickled)
