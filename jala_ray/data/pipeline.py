"""Ray Data from plan to batches. With `data.blocks` the only file of this room that knows Ray.

Where the number of ranks W is known (`UnitConfig.configure`), block jW + r is made of rank r's shares of steps jm .. jm+m-1, as one
row, which Ray never cuts; `streaming_split` hands blocks out in turn, in order, so that every rank meets its own shares, step after
step, whatever W and m are.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
import torch
from ray.exceptions import RayTaskError

from jala_ray.data.blocks import StoredItems, Unopened, numbered
from jala_ray.data.samples.chunks import ManifestRow, read_chunks
from jala_ray.data.samples.share import Parcel, StepShare
from jala_ray.data.samples.steps import ShareBuilder, StepBuilder, Unit
from jala_ray.data.sampling.plan import Plan, PlanRow, Span, Steps, rank_rows
from jala_ray.types import CHUNK_FRAMES, FEATURE_DIM, JalaError, UserError

T = TypeVar("T")

SLAB_ROWS = 1 << 20
"""Plan rows of one object in Ray's store (23 bytes each)."""


@dataclass(frozen=True)
class Segment:
    """Steps `first` .. `last - 1` of a plan, to be streamed in blocks of `steps_per_block`."""

    builder: StepBuilder
    first: int
    last: int
    steps_per_block: int = 1
    resume_from: str | None = None
    """The checkpoint after step `first`; None at the run's beginning. Told to every rank with its data (`begins_with`)."""


@dataclass(frozen=True)
class StoredPlan:
    """The plan rows of a segment, in Ray's object store: tasks fetch the slab they need, and a node holds it once.

    Slabs are of `places.PLACE`, `SLAB_ROWS` each, one epoch after another.
    """

    files: tuple[str, ...]
    steps: Steps
    epoch: int
    """The first one; `start` is its first row that is stored."""
    start: int

    @classmethod
    def put(cls, plan: Plan, first: int, last: int) -> tuple[StoredPlan, list[ray.ObjectRef]]:
        """Store what steps `first` .. `last - 1` need; the slabs that hold it."""
        begin = plan.steps.span(first)
        slabs: list[ray.ObjectRef] = []
        parts, held = [], 0
        for epoch in range(begin.epoch, plan.steps.span(last - 1).epoch + 1):
            places = plan.places(Span(epoch, begin.first if epoch == begin.epoch else 0, plan.steps.rows))
            parts, held = [*parts, places], held + len(places)
            while held >= SLAB_ROWS:
                whole = np.concatenate(parts)
                slabs.append(ray.put(whole[:SLAB_ROWS]))
                parts, held = [whole[SLAB_ROWS:]], held - SLAB_ROWS
        slabs.append(ray.put(np.concatenate(parts)))
        return cls(plan.catalogue.files, plan.steps, begin.epoch, begin.first), slabs

    def rows(self, slabs: Sequence[ray.ObjectRef], step: int, rank: int, world: int) -> list[PlanRow]:
        """As `Plan.share`: a task takes the places of a step, some kilobytes, and the rows of its rank alone."""
        span = self.steps.span(step)
        begin = (span.epoch - self.epoch) * self.steps.rows - self.start + span.first
        end = begin + len(span)
        parts = []
        for slab in range(begin // SLAB_ROWS, (end - 1) // SLAB_ROWS + 1):
            base = slab * SLAB_ROWS
            parts.append(ray.get(slabs[slab])[max(0, begin - base) : end - base])
        return rank_rows(np.concatenate(parts), self.files, span, rank, world)


def shares_column(parcels: Sequence[Parcel]) -> pa.Array:
    """One row of an Arrow column of lists of binary cells, the parcels' bytes written once."""
    ends = np.cumsum([0, *(parcel.nbytes for parcel in parcels)])
    data = pa.allocate_buffer(int(ends[-1]))
    out = np.frombuffer(data, np.uint8)
    for parcel, begin in zip(parcels, ends, strict=False):
        parcel.write(out[begin : begin + parcel.nbytes])
    cells = pa.Array.from_buffers(pa.large_binary(), len(parcels), [None, pa.py_buffer(ends.astype(np.int64)), data])
    return pa.ListArray.from_arrays(pa.array([0, len(parcels)], pa.int32()), cells)


def share_views(row: pa.ListScalar) -> Iterator[memoryview]:
    """The cells of a row of a `shares_column`, views of its memory; Arrow's own scalars are copies."""
    cells = row.values
    _, ends, data = cells.buffers()
    at = np.frombuffer(ends, np.int64)[cells.offset : cells.offset + len(cells) + 1].tolist()
    view = memoryview(data) if data is not None else memoryview(b"")
    yield from (view[begin:end] for begin, end in itertools.pairwise(at))


def shares_of(block: int, first: int, last: int, world: int, m: int) -> tuple[int, range]:
    """Block number -> the rank whose shares it is made of, and of which steps."""
    j, rank = divmod(block, world)
    return rank, range(first + j * m, min(first + (j + 1) * m, last))


@dataclass(frozen=True)
class Stage:
    """The map stage: the number of a block -> its row, with the serialised shares of its rank; the segment's last block has fewer."""

    builder: ShareBuilder
    plan: StoredPlan
    first: int
    last: int
    steps_per_block: int
    world: int

    def __call__(self, batch: dict[str, np.ndarray], slabs: Sequence[ray.ObjectRef]) -> dict[str, Any]:
        torch.set_num_threads(1)  # one task per core; more threads would fight over it
        rank, steps = shares_of(int(batch["block"].item()), self.first, self.last, self.world, self.steps_per_block)
        wanted = [Unit(step, self.plan.rows(slabs, step, rank, self.world), self.world) for step in steps]
        parcels = [share.parcel() for share in self.builder.shares(wanted)]
        return {"step": [steps.start], "rank": [rank], "shares": shares_column(parcels)}


def share_dataset(segment: Segment, world: int) -> ray.data.Dataset:
    """All shares of a segment for `world` ranks, those of m steps of one rank in a block."""
    m = segment.steps_per_block
    plan, slabs = StoredPlan.put(segment.builder.plan, segment.first, max(segment.last, segment.first + 1))
    stage = Unopened(Stage(segment.builder.builder, plan, segment.first, segment.last, m, world), slabs)
    dataset = numbered(-(-(segment.last - segment.first) // m) * world)
    return dataset.map_batches(cast(Any, stage.__call__), batch_size=1, zero_copy_batch=True, num_cpus=1)


Selector = Mapping[str, str]
"""Of nodes, by their labels (Ray's `label_selector`); empty: all."""


def settled(context: ray.data.DataContext, selector: Selector, cpus: float | None = None) -> None:
    """What all our datasets have in common, and the nodes of one: its tasks run there, and nodes are asked for of that kind.

    `cpus`: how many it takes, and asks for, at most.
    """
    context.execution_options.label_selector = dict(selector) or None
    if cpus is not None:
        context.execution_options.resource_limits = ray.data.ExecutionResources(cpu=cpus)
    context.enable_progress_bars = False  # the loops and jobs print their own lines
    context.raise_original_map_exception = (
        True  # with its fields; Ray's wrapper would lose them on its way between processes
    )


class UnitConfig(ray.train.DataConfig):
    """Builds each dataset when Train knows the number of workers; `datasets` given to the trainer only name them."""

    def __init__(self, segments: dict[str, Any], selector: Selector | None = None, cpus: float | None = None) -> None:
        """`segments[name]()` gives the `Segment` to stream, asked for at every start of the worker group.

        `selector` says on which nodes, `cpus` on how many CPUs at most.
        """
        super().__init__()
        self.segments, self.selector, self.cpus = segments, selector or {}, cpus

    def configure(self, datasets: Any, world_size: int, *_: Any, **__: Any) -> list[dict[str, ray.data.DataIterator]]:
        shards: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for name, resolve in self.segments.items():
            if name not in datasets:
                continue
            segment: Segment = resolve()
            dataset = share_dataset(segment, world_size)
            dataset.set_name(name)
            dataset.context.execution_options.preserve_order = True
            settled(dataset.context, self.selector, self.cpus)
            for rank, split in enumerate(dataset.streaming_split(world_size, equal=True)):
                split.resume_from = segment.resume_from  # type: ignore[attr-defined]  it travels with the iterator
                shards[rank][name] = split
        return shards


def begins_with(shard: ray.data.DataIterator) -> str | None:
    """The checkpoint whose next step a rank's data begin with: asked for once a start of the worker group, for data and weights."""
    return shard.resume_from  # type: ignore[attr-defined]


def blocks(shard: ray.data.DataIterator) -> Iterator[Any]:
    """Whole blocks: Ray would copy what is left of a block for every batch that it cuts off."""
    return iter(shard.iter_batches(batch_size=cast(Any, None), prefetch_batches=1, batch_format="pyarrow"))


def explained(stream: Iterable[T]) -> Iterator[T]:
    """The stream; where a task ended it, its error that explains itself, if it is one, in place of Ray's report of it."""
    try:
        yield from stream
    except Exception as error:
        cause = cause_of(error)
        if cause is None or cause is error:
            raise
        raise cause from error


def cause_of(error: BaseException | None) -> JalaError | None:
    """The error that explains itself behind what Ray made of it: wrapped, chained, or in another process."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        found = waiting.pop(0)
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, JalaError) and not isinstance(
            found, RayTaskError
        ):  # Ray's inherits from the error that it carries
            return found
        inner = (getattr(found, name, None) for name in ("cause", "_base_exc", "controller_failure"))
        waiting += [
            e
            for e in (*inner, *getattr(found, "worker_failures", {}).values(), found.__cause__, found.__context__)
            if e
        ]
    return None


def read_shares(shard: ray.data.DataIterator, first: int, last: int, rank: int) -> Iterator[StepShare]:
    """A rank's shares of steps `first` .. `last - 1`, in order.

    Raises `UserError` if the stream hands out anything else, and what a task raised (`StoreUnavailable`) as it was.
    """
    expected = first
    for batch in explained(blocks(shard)):
        table = cast(pa.Table, batch)
        for step, owner, row in zip(table["step"].to_pylist(), table["rank"].to_pylist(), table["shares"], strict=True):
            if (step, owner) != (expected, rank):
                got, wanted = f"step {step} of rank {owner}", f"step {expected} of rank {rank}"
                raise UserError(
                    "data stream", got, wanted, "The order of blocks was not kept; this is a bug, not bad data."
                )
            for share in share_views(row):
                if expected == last:
                    return
                yield StepShare.from_buffer(share)
                expected += 1
    if expected < last:
        raise UserError("data stream", f"{expected - first} steps", f"{last - first} steps", "The stream ended early.")


CHUNK_ROWS = 64
"""Clips per task of `chunk_arrays`."""


def chunk_arrays(rows: Sequence[ManifestRow], selector: Selector | None = None) -> dict[str, np.ndarray]:
    """All labelled chunks of manifest rows (see `data.chunks.read_chunks`), read by a Ray Data job, in the rows' order."""
    if not rows:
        return read_chunks([])
    groups = [rows[at : at + CHUNK_ROWS] for at in range(0, len(rows), CHUNK_ROWS)]
    stored = StoredItems.put(groups)

    def stage(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        torch.set_num_threads(1)
        arrays = read_chunks(stored[int(batch["block"].item())])
        flat = {"features": np.float32, "side": np.int64, "beta": np.float32}
        return {name: [arrays[name].astype(kind).tobytes()] for name, kind in flat.items()}

    dataset = numbered(len(groups)).map_batches(cast(Any, stage), batch_size=1)
    dataset.context.execution_options.preserve_order = True
    settled(dataset.context, selector or {})
    parts: dict[str, list[np.ndarray]] = {"features": [], "side": [], "beta": []}
    for row in explained(dataset.iter_rows()):
        parts["features"].append(np.frombuffer(row["features"], np.float32).reshape(-1, CHUNK_FRAMES, FEATURE_DIM))
        parts["side"].append(np.frombuffer(row["side"], np.int64))
        parts["beta"].append(np.frombuffer(row["beta"], np.float32).reshape(-1, 10))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def work_through(
    items: Sequence[T],
    work: Callable[[T], dict[str, Any]],
    *,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    actors: int = 1,
    selector: Selector | None = None,
) -> Iterator[dict[str, Any]]:
    """`work(item)` of every item by a Ray Data job; the dicts it returns, in the order in which they are done.

    `work` reports what is wrong with an item in its dict: an exception stops the job. With GPUs, up to `actors` do it: a task with a
    GPU ends its process, and what that has loaded.
    """
    if not items:
        return
    stored = StoredItems.put(items)

    class EachItem:
        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
            torch.set_num_threads(max(1, int(num_cpus)))
            return {"result": [json.dumps(work(stored[int(batch["block"].item())]))]}

    stage: Any = EachItem().__call__
    options: dict[str, Any] = {"num_cpus": num_cpus}
    if num_gpus:
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=min(actors, len(items)))
        stage, options = EachItem, {"num_gpus": num_gpus, "compute": pool}
    dataset = numbered(len(items)).map_batches(stage, batch_size=1, **options)
    settled(dataset.context, selector or {})
    for row in explained(dataset.iter_rows()):
        yield json.loads(row["result"])
