"""What a rank stages: who writes which tensor, images that safetensors reads, copies that nothing changes, moments by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, load_file
from torch import Tensor, nn

from jala_ray.models.tensor_files import TensorFiles
from jala_ray.training.moments import load_moments, moments
from jala_ray.training.staging import TYPES, FileImage, Kinds, Sharded, StagingBuffers, deal
from jala_ray.types import CheckpointError


def some(count: int = 7) -> dict[str, Tensor]:
    return {f"layer.{i}": torch.arange(4.0 * (i + 1)).reshape(2, -1) + i for i in range(count)}


def written(kinds: Kinds, world: int, folder: Path) -> Path:
    """The folder that all ranks together write."""
    folder.mkdir(parents=True)
    for rank in range(world):
        for name, content in StagingBuffers(rank, world).take(kinds, {"state.json": b"{}"}).files.items():
            assert not (folder / name).exists(), f"{name} is written by two ranks"
            (folder / name).write_bytes(content)
    return folder


@given(sizes=st.lists(st.integers(0, 50), max_size=20), world=st.integers(1, 5), most=st.integers(1, 200))
def test_every_tensor_is_dealt_to_one_file_of_one_rank(sizes: list[int], world: int, most: int) -> None:
    kinds: Kinds = {"model": {f"t{i}": torch.empty(size, dtype=torch.uint8) for i, size in enumerate(sizes)}}
    shards = deal(kinds, world, most)
    assert sorted(name for shard in shards for name in shard.names) == sorted(kinds["model"])
    assert len({shard.file for shard in shards}) == len(shards)
    loads = [sum(sizes[int(n[1:])] for s in shards if s.rank == rank for n in s.names) for rank in range(world)]
    assert max(loads) - min(loads) <= max(sizes, default=0)
    for shard in shards:
        assert len(shard.names) == 1 or sum(sizes[int(n[1:])] for n in shard.names) <= most


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_ranks_writes_what_is_read_alike(world: int, tmp_path: Path) -> None:
    kinds = {"model": some(), "optimizer": {f"{name}.exp_avg": value * 2 for name, value in some(2).items()}}
    folder = written(kinds, world, tmp_path / "made")
    names = {path.name for path in folder.iterdir()}
    assert ("model.safetensors" in names) == (world == 1) and "state.json" in names
    if world > 1:
        assert f"model-00001-of-{world:05d}.safetensors" in names
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(value.nbytes for value in some().values())
    for kind, tensors in kinds.items():
        stored = TensorFiles.of_folder(folder, stem=kind)
        assert set(stored) == set(tensors)
        assert all(torch.equal(stored.tensor(name), value) for name, value in tensors.items())


def test_an_image_is_a_file_of_every_type() -> None:
    """Those of odd sizes, empty ones and scalars among them."""
    tensors = {f"t{i}": torch.ones(3, 5).to(dtype) for i, dtype in enumerate(TYPES)}
    tensors |= {
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7, dtype=torch.int16),
        "odd": torch.ones(3, dtype=torch.bool),
    }
    image = FileImage(tensors)
    for name, view in image.views.items():
        view.copy_(tensors[name])
    stored = load(bytes(image.content))
    assert stored.keys() == tensors.keys()
    for name, value in tensors.items():
        assert stored[name].dtype == value.dtype and stored[name].shape == value.shape
        assert torch.equal(stored[name].float(), value.float()), name


def test_a_later_step_does_not_change_what_was_staged_and_buffers_are_reused() -> None:
    model = {"weight": torch.zeros(1000)}
    stage = StagingBuffers()
    first = stage.take({"model": model}, {})
    image, kept = first.files["model.safetensors"], bytes(first.files["model.safetensors"])
    model["weight"].fill_(1.0)  # as an optimizer does, in place
    assert bytes(image) == kept and torch.equal(load(bytes(image))["weight"], torch.zeros(1000))
    again = stage.take({"model": model}, {}).files["model.safetensors"]
    assert isinstance(image, memoryview) and isinstance(again, memoryview)
    assert (
        torch.frombuffer(image, dtype=torch.uint8).data_ptr() == torch.frombuffer(again, dtype=torch.uint8).data_ptr()
    )
    more = stage.take({"model": {**model, "bias": torch.ones(2)}}, {}).files["model.safetensors"]
    assert load(bytes(more)).keys() == {"weight", "bias"}


def test_a_sharded_tensor_is_made_whole_by_all_ranks_and_kept_by_one(tmp_path: Path) -> None:
    whole, asked = some(), [0, 0]

    def of(rank: int, name: str) -> Sharded:
        def gathered() -> Tensor:
            asked[rank] += 1
            return whole[name]

        return Sharded(torch.empty_like(whole[name], device="meta"), gathered)

    for rank in range(2):
        files = StagingBuffers(rank, 2).take({"model": {name: of(rank, name) for name in whole}}, {}).files
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
    assert asked == [len(whole)] * 2, "it is collective"
    stored = TensorFiles.of_folder(tmp_path)
    assert all(torch.equal(stored.tensor(name), value) for name, value in whole.items())


def test_the_same_tensors_are_the_same_bytes() -> None:
    """Whatever order they come in: a resumed run's checkpoint is the unbroken one's."""
    tensors = some()
    one, other = (
        StagingBuffers().take({"model": dict(order)}, {}) for order in (tensors.items(), list(tensors.items())[::-1])
    )
    assert bytes(one.files["model.safetensors"]) == bytes(other.files["model.safetensors"])


# --- moments ---------------------------------------------------------------------------------------------------------


def trained(steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    # In another order than the module's, as groups by decay are.
    optimizer = torch.optim.AdamW(list(module.parameters())[::-1], lr=0.1)
    for _ in range(steps):
        module(torch.ones(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module, optimizer


@pytest.mark.parametrize("old", [False, True], ids=["by_name", "optimizer.pt"])
def test_moments_come_back(old: bool, tmp_path: Path) -> None:
    """Also from older checkpoints, which have them by number."""
    module, optimizer = trained()
    if old:
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    else:
        written({"optimizer": moments(optimizer, module)}, 2, tmp_path / "made")
    fresh, other = trained(0)
    fresh.load_state_dict(module.state_dict())
    load_moments(other, fresh, tmp_path if old else tmp_path / "made")
    for a, b in zip(module.parameters(), fresh.parameters(), strict=True):
        assert optimizer.state[a].keys() == other.state[b].keys()
        assert all(torch.equal(optimizer.state[a][key], other.state[b][key]) for key in optimizer.state[a])
    for net, moved in ((module, optimizer), (fresh, other)):
        net(torch.ones(1, 3)).sum().backward()
        moved.step()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), fresh.parameters(), strict=True))


def test_moments_of_others_are_refused(tmp_path: Path) -> None:
    module, optimizer = trained()
    written({"optimizer": moments(optimizer, module)}, 1, tmp_path / "made")
    assert "0.weight.exp_avg_sq" in load_file(tmp_path / "made" / "optimizer.safetensors")
    other = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(CheckpointError, match=r"not 1\.(weight|bias)"):
        load_moments(torch.optim.AdamW(other.parameters()), other, tmp_path / "made")
    with pytest.raises(CheckpointError, match="an optimizer state"):
        load_moments(optimizer, module, tmp_path)
