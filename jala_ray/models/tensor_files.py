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

from jala_ray.models.shards import own_part, sharded_as
from jala_ray.types import CheckpointError

WEIGHTS = "model"
"""What the names of files of weights begin with."""
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
    def of_folder(cls, folder: Path, rename: Callable[[str], str] = str, stem: str = WEIGHTS) -> TensorFiles:
        """One file of weights, or the shards that an index lists. Raises `CheckpointError`."""
        return cls(weight_files(folder, stem), rename)

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


def weight_files(folder: Path, stem: str = WEIGHTS) -> list[Path]:
    """The files that hold a folder's weights, or what else `stem` names. Raises `CheckpointError` where there are none, or the index is
    damaged.
    """
    whole, index = folder / f"{stem}.safetensors", folder / index_name(stem)
    if whole.exists():
        return [whole]
    try:
        shards = json.loads(index.read_text())["weight_map"].values()
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            "weights", str(folder), f"{whole.name}, or {index.name} with its shards ({error})"
        ) from error
    return [folder / name for name in sorted(set(shards))]


def has_tensors(folder: Path, stem: str) -> bool:
    """Whether a folder has a file, or shards, of this name."""
    return any((folder / name).exists() for name in (f"{stem}.safetensors", index_name(stem)))


def file_name(stem: str, number: int, of: int) -> str:
    """As transformers names one file of weights, or the shards of several, from 1 on."""
    return f"{stem}.safetensors" if of == 1 else f"{stem}-{number:05d}-of-{of:05d}.safetensors"


def index_name(stem: str) -> str:
    """Of the list of several."""
    return f"{stem}.safetensors.index.json"


def index_of(placed: Mapping[str, str], total: int) -> str:
    """The list: tensor -> file."""
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}, indent=2)


@torch.no_grad()
def fill(own: Mapping[str, Tensor], stored: TensorFiles, names: Collection[str]) -> None:
    """Copy tensors `names` into those of a `state_dict`, one by one; of a sharded one this rank's part. Names and shapes must fit."""
    for name in names:
        own_part(own[name]).copy_(own_part(sharded_as(stored.tensor(name), own[name])))


def write_shards(
    folder: Path,
    stored: TensorFiles,
    names: Mapping[str, str],
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    stem: str = WEIGHTS,
) -> None:
    """Write tensors (name in `stored` -> name in the files) to `folder`, floats in `dtype` (None: as they are).

    One file, or shards and an index, as transformers writes them; memory holds one shard at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan, placed, total = _plan(stored, names, dtype, shard_bytes), dict[str, str](), 0
    for number, group in enumerate(plan, 1):
        file = file_name(stem, number, len(plan))
        tensors = {names[name]: _cast(stored.tensor(name), dtype) for name in group}
        total += sum(tensor.nbytes for tensor in tensors.values())
        safetensors.torch.save_file(tensors, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(tensors, file)
        del tensors
    if len(plan) > 1:
        (folder / index_name(stem)).write_text(index_of(placed, total))


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
