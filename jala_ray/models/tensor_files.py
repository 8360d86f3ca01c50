"""Named tensors in safetensors files: read one at a time, written shard by shard, so that memory never holds a model twice.

Files are read by `pread`: pages of a mapped file would count as memory of the process, a whole copy of the weights by the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jala_ray.types import CheckpointError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""As transformers names one file of weights, and the list of several."""
SHARD_BYTES = 2 * 1024**3
"""Of a file that `write_shards` writes, at most, unless one tensor alone is larger."""

Shape = tuple[int, ...]


class TensorFiles:
    """The tensors of some files by name; each is read when it is asked for. Add two for the tensors of both."""

    def __init__(self, files: Iterable[Path], rename: Callable[[str], str] = str) -> None:
        """`rename`: name in the file -> name here. Raises `CheckpointError` for a file that is absent or damaged."""
        self._places: dict[str, tuple[Any, str]] = {}
        for path in files:
            opened = _open(path)
            self._places |= {rename(name): (opened, name) for name in opened.keys()}  # noqa: SIM118 it is no mapping

    @classmethod
    def of_folder(cls, folder: Path, rename: Callable[[str], str] = str) -> TensorFiles:
        """One file of weights, or the shards that an index lists. Raises `CheckpointError`."""
        return cls(weight_files(folder), rename)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __add__(self, other: TensorFiles) -> TensorFiles:
        both = TensorFiles(())
        both._places = self._places | other._places
        return both

    def only(self, kept: Callable[[str], bool]) -> TensorFiles:
        """Those whose names are wanted."""
        some = TensorFiles(())
        some._places = {name: place for name, place in self._places.items() if kept(name)}
        return some

    def shapes(self) -> dict[str, Shape]:
        """The shape of every tensor, from the files' headers."""
        return {name: tuple(opened.get_slice(stored).get_shape()) for name, (opened, stored) in self._places.items()}

    def lazy(self) -> dict[str, Any]:
        """Slices that read a tensor when they are indexed, as `from_pretrained` takes them for a `state_dict`."""
        return {name: opened.get_slice(stored) for name, (opened, stored) in self._places.items()}

    def tensor(self, name: str) -> Tensor:
        """Read one tensor onto the CPU, in the stored dtype."""
        opened, stored = self._places[name]
        return opened.get_tensor(stored)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt", backend="pread")
    except (OSError, SafetensorError) as error:
        raise CheckpointError("weights", str(path), f"a readable safetensors file ({error})") from error


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights. Raises `CheckpointError` where there are none, or the index is damaged."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    try:
        shards = json.loads((folder / INDEX).read_text())["weight_map"].values()
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError("weights", str(folder), f"{WEIGHTS}, or {INDEX} with its shards ({error})") from error
    return [folder / name for name in sorted(set(shards))]


@torch.no_grad()
def fill(own: Mapping[str, Tensor], stored: TensorFiles, names: Collection[str]) -> None:
    """Copy tensors `names` into those of a `state_dict`, one by one. Names and shapes must fit."""
    for name in names:
        own[name].copy_(stored.tensor(name))


def write_shards(
    folder: Path,
    stored: TensorFiles,
    names: Mapping[str, str],
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors (name in `stored` -> name in the files) to `folder`, floats in `dtype` (None: as they are).

    One file, or shards and an index, as transformers writes them; memory holds one shard at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan, placed, total = _plan(stored, names, dtype, shard_bytes), dict[str, str](), 0
    for number, group in enumerate(plan, 1):
        file = WEIGHTS if len(plan) == 1 else f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        tensors = {names[name]: _cast(stored.tensor(name), dtype) for name in group}
        total += sum(tensor.nbytes for tensor in tensors.values())
        safetensors.torch.save_file(tensors, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(tensors, file)
        del tensors
    if len(plan) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2))


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _plan(stored: TensorFiles, names: Iterable[str], dtype: torch.dtype | None, shard_bytes: int) -> list[list[str]]:
    """Names by shard, in order."""
    shapes, groups, room = stored.shapes(), [list[str]()], shard_bytes
    for name in names:
        size = torch.Size(shapes[name]).numel() * (torch.float32 if dtype is None else dtype).itemsize
        if groups[-1] and size > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(name)
        room -= size
    return groups
