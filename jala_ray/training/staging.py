"""A rank's part of a checkpoint in host memory: which tensors it writes, and the images of their files.

Whole tensors are dealt to ranks by bytes, largest first, alike on every rank; those of a rank fill files of at most `SHARD_BYTES`. Names
say nothing of ranks: a folder has one file of a kind, or shards and an index as transformers has them, and any number of ranks reads it.

An image is the file as it will lie on the disk, the tensors views of it, so that a tensor is copied once on its way from the device, and
writing, hashing and sending read one buffer. Images are made once and filled again for every checkpoint; on CUDA they are pinned.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from jala_ray.models.tensor_files import SHARD_BYTES, file_name, index_name, index_of

IMAGE_BYTES = SHARD_BYTES - 2**20
"""Of a file's tensors, at most: with its header it fits into a power of two, to which pinned memory is rounded."""
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Of the format, https://huggingface.co/docs/safetensors."""


@dataclass(frozen=True)
class Sharded:
    """A tensor of which every rank has a part."""

    like: Tensor
    """Its whole shape and dtype, on the device `meta`."""
    whole: Callable[[], Tensor]
    """The whole of it, on any device. Collective: all ranks call it, one tensor after another in the same order."""


Given = Tensor | Sharded
Kinds = Mapping[str, Mapping[str, Given]]
"""Name of a kind of files (`model`, `optimizer`) -> tensors by name, the same on every rank."""


def given(tensor: Tensor) -> Given:
    """As it is, or, where ranks have parts of it, what makes it whole."""
    if not isinstance(tensor, DTensor):
        return tensor
    return Sharded(torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"), tensor.full_tensor)


def like(given: Given) -> Tensor:
    return given.like if isinstance(given, Sharded) else given


@dataclass(frozen=True)
class Shard:
    """One file: its tensors, by name, and the rank that writes it."""

    kind: str
    file: str
    rank: int
    names: tuple[str, ...]


def deal(kinds: Kinds, world: int, file_bytes: int = IMAGE_BYTES) -> list[Shard]:
    """Every file of a checkpoint."""
    sizes = {(kind, name): like(given).nbytes for kind, tensors in kinds.items() for name, given in tensors.items()}
    loads, owner = [(0, rank) for rank in range(world)], dict[tuple[str, str], int]()
    for place, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        load, owner[place] = heapq.heappop(loads)
        heapq.heappush(loads, (load + size, owner[place]))
    shards = list[Shard]()
    for kind, tensors in kinds.items():
        groups = list[tuple[int, tuple[str, ...]]]()
        for rank in range(world):
            mine = {name: sizes[kind, name] for name in tensors if owner[kind, name] == rank}
            groups += [(rank, group) for group in _cut(mine, file_bytes)]
        names = (file_name(kind, number, len(groups)) for number in range(1, len(groups) + 1))
        shards += [Shard(kind, file, rank, group) for file, (rank, group) in zip(names, groups, strict=True)]
    return shards


def _cut(sizes: Mapping[str, int], most: int) -> list[tuple[str, ...]]:
    """Names in groups of at most so many bytes, unless one alone has more."""
    groups, room = list[list[str]](), -1
    for name, size in sizes.items():
        if size > room:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= size
    return [tuple(group) for group in groups]


class FileImage:
    """A safetensors file in host memory."""

    def __init__(self, tensors: Mapping[str, Tensor], *, pinned: bool = False) -> None:
        """`tensors` tell shapes and dtypes."""
        # Wide elements first: each begins at a multiple of its size. Then by name: the same tensors are the same bytes.
        order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        spans, end = dict[str, tuple[int, int]](), 0
        for name in order:
            tensor = tensors[name]
            spans[name] = end, (end := end + math.prod(tensor.shape) * tensor.dtype.itemsize)
            header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [*spans[name]]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        begin = 8 + len(text)
        self.bytes = torch.empty(begin + end, dtype=torch.uint8, pin_memory=pinned)
        self.bytes[:begin] = torch.frombuffer(bytearray(len(text).to_bytes(8, "little") + text), dtype=torch.uint8)
        self.views = {
            name: self.bytes[begin + first : begin + last].view(tensors[name].dtype).view(tensors[name].shape)
            for name, (first, last) in spans.items()
        }

    @property
    def content(self) -> memoryview:
        return memoryview(cast(Any, self.bytes.numpy()))


@dataclass(frozen=True)
class Staged:
    """One rank's part of a checkpoint, a copy that nothing changes until the next one is staged."""

    files: Mapping[str, bytes | memoryview]
    writers: tuple[int, ...] = ()
    """Ranks but 0 that have files of their own."""
    more: Callable[[Path], None] | None = None
    """Writes further files, of what never changes, into a folder. Rank 0's."""

    @property
    def nbytes(self) -> int:
        return sum(len(content) for content in self.files.values())


@dataclass
class StagingBuffers:
    """A rank's images, kept from checkpoint to checkpoint."""

    rank: int = 0
    world: int = 1
    pinned: bool = False
    _signature: object = None
    _shards: list[Shard] = field(default_factory=list)
    _images: dict[str, FileImage] = field(default_factory=dict)

    @torch.no_grad()
    def take(self, kinds: Kinds, facts: Mapping[str, bytes], more: Callable[[Path], None] | None = None) -> Staged:
        """Copy this rank's tensors; returns when the copies are there. Rank 0 has `facts`, small files, and `more` beside them.

        The tensors of a `Staged` before are overwritten.
        """
        self._prepare(kinds)
        views = {
            (s.kind, n): self._images[s.file].views[n] for s in self._shards if s.rank == self.rank for n in s.names
        }
        for kind, tensors in kinds.items():
            for name, given in tensors.items():
                tensor = given.whole() if isinstance(given, Sharded) else given
                if (kind, name) in views:
                    views[kind, name].copy_(tensor, non_blocking=True)
        if self.pinned:
            torch.cuda.current_stream().synchronize()
        files: dict[str, bytes | memoryview] = {file: image.content for file, image in self._images.items()}
        writers = tuple(sorted({shard.rank for shard in self._shards} - {0}))
        if self.rank > 0:
            return Staged(files, writers)
        return Staged({**files, **self._indices(kinds), **facts}, writers, more)

    def _prepare(self, kinds: Kinds) -> None:
        """Deal anew where there are other tensors than last time: moments appear with the first step that moves weights."""
        signature = {k: {n: (like(g).shape, like(g).dtype) for n, g in tensors.items()} for k, tensors in kinds.items()}
        if signature == self._signature:
            return
        self._images = {}  # before their successors are made
        self._shards, self._signature = deal(kinds, self.world), signature
        mine = (shard for shard in self._shards if shard.rank == self.rank)
        self._images = {
            s.file: FileImage({name: like(kinds[s.kind][name]) for name in s.names}, pinned=self.pinned) for s in mine
        }

    def _indices(self, kinds: Kinds) -> dict[str, bytes]:
        """Of the kinds that have several files."""
        indices = dict[str, bytes]()
        for kind, tensors in kinds.items():
            placed = {name: shard.file for shard in self._shards if shard.kind == kind for name in shard.names}
            if len(set(placed.values())) > 1:
                total = sum(like(given).nbytes for given in tensors.values())
                indices[index_name(kind)] = index_of(placed, total).encode()
        return indices
