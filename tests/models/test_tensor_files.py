"""Tensors go from and to files one at a time: equal to what the library reads and writes, and the weights are in memory once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from jala_ray.models.tensor_files import TensorFiles, fill, weight_files, write_shards
from jala_ray.types import CheckpointError


def some() -> dict[str, Tensor]:
    return {
        "a.weight": torch.randn(8, 16),
        "a.bias": torch.randn(16).bfloat16(),
        "b.count": torch.tensor(3),
        "b.weight": torch.randn(40, 10),
        "c.weight": torch.randn(2, 3, 4),
    }


def test_shards_hold_what_was_there(tmp_path: Path) -> None:
    tensors = some()
    save_file(tensors, tmp_path / "model.safetensors")
    stored = TensorFiles.of_folder(tmp_path)
    assert stored.shapes() == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    write_shards(tmp_path / "shards", stored, {name: f"x.{name}" for name in stored}, None, 1000)
    files = weight_files(tmp_path / "shards")
    assert len(files) == 3 and files[0].name == "model-00001-of-00003.safetensors"
    listed = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())["weight_map"]
    for file in files:
        held = load_file(file)
        assert {name for name, where in listed.items() if where == file.name} == held.keys()
        assert all(torch.equal(tensor, tensors[name[2:]]) for name, tensor in held.items())
        assert all(tensor.dtype == tensors[name[2:]].dtype for name, tensor in held.items())
    again = TensorFiles.of_folder(tmp_path / "shards", lambda name: name.removeprefix("x."))
    assert sorted(again) == sorted(tensors)


def test_floats_are_cast_and_integers_are_not(tmp_path: Path) -> None:
    save_file(some(), tmp_path / "model.safetensors")
    stored = TensorFiles.of_folder(tmp_path)
    write_shards(tmp_path / "half", stored, {name: name for name in stored}, torch.bfloat16)
    held = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for name, tensor in held.items() if name != "b.count"} == {torch.bfloat16}
    assert held["b.count"].dtype == torch.int64
    assert torch.equal(held["a.weight"], stored.tensor("a.weight").bfloat16())


def test_a_state_is_filled(tmp_path: Path) -> None:
    save_file(some(), tmp_path / "model.safetensors")
    stored = TensorFiles.of_folder(tmp_path)
    own = {"a.weight": torch.zeros(8, 16), "a.bias": torch.zeros(16)}
    fill(own, stored, own)
    assert torch.equal(own["a.weight"], stored.tensor("a.weight"))
    assert torch.equal(own["a.bias"], stored.tensor("a.bias").float())


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        TensorFiles.of_folder(tmp_path)
    save_file(some(), tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        TensorFiles.of_folder(tmp_path)


MEASURED = """
import sys, torch
from pathlib import Path
from jala_ray.models.tensor_files import TensorFiles, fill, write_shards

def peak():  # of this program: ru_maxrss begins with that of the process it was started by
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

folder = Path(sys.argv[1])
stored = TensorFiles.of_folder(folder)
before = peak()
own = {name: torch.ones(shape) for name, shape in stored.shapes().items()}
fill(own, stored, own)
filled = peak() - before
write_shards(folder / "out", stored, {name: name for name in stored}, None, 2**24)
print(filled, peak() - before - filled)
"""


def test_the_weights_are_in_memory_once(tmp_path: Path) -> None:
    """Sixteen tensors of 16 MB: reading them into place needs one more of them, writing them one shard."""
    size = 2**24
    save_file({f"{i:02d}": torch.full((size // 4,), float(i)) for i in range(16)}, tmp_path / "model.safetensors")
    done = subprocess.run([sys.executable, "-c", MEASURED, tmp_path], capture_output=True, text=True, check=True)
    filled, written = map(int, done.stdout.split())
    assert 16 * size <= filled < 1.3 * 16 * size
    assert written < 16 * size / 2
