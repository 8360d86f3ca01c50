"""Ray Data from plan to batches. The only file of this room that knows Ray.

A *unit* is one rank's share of one step. Where the number of ranks W is known (`UnitConfig.configure`), units are laid out so that
block (j, r) holds rank r's shares of steps jm .. jm+m-1; `streaming_split` hands blocks out in turn, in order, so that every rank
meets its own units, step after step, whatever W and m are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
import torch

from jala_ray.data.chunks import ManifestRow, read_chunks
from jala_ray.data.steps import StepBuilder, StepShare
from jala_ray.types import CHUNK_FRAMES, FEATURE_DIM, UserError


@dataclass(frozen=True)
class Segment:
    """Steps `first` .. `last - 1` of a builder's plan, to be streamed."""

    builder: StepBuilder
    first: int
    last: int
    steps_per_block: int = 1


def unit(index: int, world: int, m: int) -> tuple[int, int]:
    """Unit number -> (step after the segment's first, rank)."""
    block, within = divmod(index, m)
    j, rank = divmod(block, world)
    return j * m + within, rank


def build_units(batch: dict[str, np.ndarray], segment: Segment, world: int) -> dict[str, Any]:
    """The map stage: unit numbers -> serialised shares. Units past the segment's end come back empty."""
    torch.set_num_threads(1)  # one task a core; more threads would fight over it
    out: dict[str, list[Any]] = {"step": [], "rank": [], "share": []}
    for index in batch["id"]:
        after, rank = unit(int(index), world, segment.steps_per_block)
        step = segment.first + after
        share = segment.builder.build(step, rank, world).to_bytes() if step < segment.last else b""
        for name, value in (("step", step), ("rank", rank), ("share", share)):
            out[name].append(value)
    return out


def unit_dataset(segment: Segment, world: int) -> ray.data.Dataset:
    """All units of a segment for `world` ranks, one block of m units a task."""
    m = segment.steps_per_block
    blocks = -(-(segment.last - segment.first) // m) * world
    dataset = ray.data.range(blocks * m, override_num_blocks=blocks)
    return dataset.map_batches(
        cast(Any, build_units),
        batch_size=m,
        fn_kwargs={"segment": segment, "world": world},
        zero_copy_batch=True,
        num_cpus=1,
    )


class UnitConfig(ray.train.DataConfig):
    """Builds each dataset when Train knows the number of workers; `datasets` given to the trainer only name them."""

    def __init__(self, segments: dict[str, Any]) -> None:
        """`segments[name]()` gives the `Segment` to stream, asked for at every start of the worker group."""
        super().__init__()
        self.segments = segments

    def configure(self, datasets: Any, world_size: int, *_: Any, **__: Any) -> list[dict[str, ray.data.DataIterator]]:
        shards: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for name, resolve in self.segments.items():
            if name not in datasets:
                continue
            dataset = unit_dataset(resolve(), world_size)
            dataset.set_name(name)
            dataset.context.execution_options.preserve_order = True
            # A unit is never cut: splitting its block would break the turn of the ranks.
            dataset.context.target_max_block_size = None
            dataset.context.enable_progress_bars = False  # the loop prints its own line
            for rank, split in enumerate(dataset.streaming_split(world_size, equal=True)):
                shards[rank][name] = split
        return shards


def read_shares(shard: ray.data.DataIterator, first: int, last: int, rank: int) -> Iterator[StepShare]:
    """A rank's shares of steps `first` .. `last - 1`, in order. Raises `UserError` if the stream hands out anything else."""
    expected = first
    for batch in shard.iter_batches(batch_size=1, prefetch_batches=1, batch_format="pyarrow"):
        (row,) = cast(pa.Table, batch).to_pylist()
        step, owner = row["step"], row["rank"]
        if (step, owner) != (expected, rank):
            got, wanted = f"step {step} of rank {owner}", f"step {expected} of rank {rank}"
            raise UserError(
                "data stream", got, wanted, "The order of blocks was not kept; this is a bug, not bad data."
            )
        if step >= last:
            return
        yield StepShare.from_bytes(row["share"])
        expected += 1
    if expected < last:
        raise UserError("data stream", f"{expected - first} steps", f"{last - first} steps", "The stream ended early.")


CHUNK_ROWS = 64
"""Clips a task of `chunk_arrays`."""


def chunk_arrays(rows: Sequence[ManifestRow]) -> dict[str, np.ndarray]:
    """All labelled chunks of manifest rows (see `data.chunks.read_chunks`), read by a Ray Data job, in the rows' order."""
    if not rows:
        return read_chunks([])
    groups = -(-len(rows) // CHUNK_ROWS)
    stored = ray.put(rows)  # once a node, not once a task

    def stage(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        torch.set_num_threads(1)
        mine = ray.get(stored)
        arrays = [read_chunks(mine[i * CHUNK_ROWS : (i + 1) * CHUNK_ROWS]) for i in batch["id"]]
        flat = {"features": np.float32, "side": np.int64, "beta": np.float32}
        return {name: [a[name].astype(kind).tobytes() for a in arrays] for name, kind in flat.items()}

    dataset = ray.data.range(groups, override_num_blocks=groups).map_batches(cast(Any, stage), batch_size=1)
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    parts: dict[str, list[np.ndarray]] = {"features": [], "side": [], "beta": []}
    for row in dataset.iter_rows():
        parts["features"].append(np.frombuffer(row["features"], np.float32).reshape(-1, CHUNK_FRAMES, FEATURE_DIM))
        parts["side"].append(np.frombuffer(row["side"], np.int64))
        parts["beta"].append(np.frombuffer(row["beta"], np.float32).reshape(-1, 10))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}
