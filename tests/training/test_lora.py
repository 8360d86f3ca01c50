"""Adapters of the language model: who learns, exact resume, what `init` and an export make of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import jala_ray
from jala_ray import storage
from jala_ray.config import LoraConfig, RunConfig
from jala_ray.config.backbones import BACKBONES
from jala_ray.models.lora import LoraLinear, adapters
from jala_ray.objectives.base import Losses
from jala_ray.presets import PRESETS
from jala_ray.training import checkpoint, history
from jala_ray.training.checkpoint import Position, TakenOver
from jala_ray.training.learner import Learner
from jala_ray.training.pretraining import Pretraining
from jala_ray.training.trainer import train
from jala_ray.types import ConfigError
from tests.support import lay_out, make_assets, make_batch, make_learner, small
from tests.training.run import make_run, run_config
from tests.training.test_loop import Killed, newest, rows

RANK = {"model__backbone__lora__rank": 4}
everyone = pytest.mark.parametrize("kind", BACKBONES)


def config_of(root: Path, kind: str = "internvl", **values: Any) -> RunConfig:
    """With a text head of its own, so that this can be told from the embedding."""
    values = {"model__backbone__language__tie_embeddings": False, "optim__lr": 0.01} | RANK | values
    return run_config(root, model__backbone__kind=kind, **values)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pretraining]:
    """Four steps of each kind, on every task."""
    found = {}
    for kind in BACKBONES:
        found[kind] = make_run(config_of(tmp_path_factory.mktemp(kind), kind))
        train(found[kind])
    return found


def losses(learner: Learner, config: RunConfig) -> dict[str, Tensor]:
    """Of each sample."""
    found: Losses
    with torch.no_grad():
        _, _, found = learner.eval().run(make_batch(lay_out(config, make_assets(config))))
    return found.terms


def test_a_layer_is_the_sum_of_two() -> None:
    plain = nn.Linear(5, 3)
    layer = LoraLinear(plain, LoraConfig(rank=2, alpha=3))
    x = torch.randn(4, 5)
    assert torch.equal(layer(x), plain(x)), "B is zero at first"
    nn.init.normal_(layer.lora_b)
    torch.testing.assert_close(layer(x), plain(x) + 1.5 * x @ layer.lora_a.T @ layer.lora_b.T)
    with torch.autocast("cpu", torch.bfloat16):
        halves = F.linear(F.linear(x.bfloat16(), layer.lora_a.bfloat16()) * 1.5, layer.lora_b.bfloat16())
        assert torch.equal(layer(x), plain(x) + halves)


@everyone
def test_a_run_begins_as_without(kind: str, tmp_path: Path) -> None:
    """The same weights under the same names, the same losses; only adapters are more."""
    with_them, without = (make_learner(config_of(tmp_path, kind, model__backbone__lora__rank=r)) for r in (4, 0))
    more, plain = with_them.state_dict(), without.state_dict()
    new = adapters(more)
    assert len(new) == 2 * 7 * 4 and more.keys() - new == plain.keys() and not adapters(plain)
    assert all(torch.equal(plain[name], more[name]) for name in plain)
    config = config_of(tmp_path, kind)
    theirs = losses(without, config)
    assert all(torch.equal(value, theirs[name]) for name, value in losses(with_them, config).items())


@everyone
def test_who_learns(trained: dict[str, Pretraining], kind: str) -> None:
    """Not matrices and biases of blocks, text embeddings and head. All else that learns without adapters does with them."""
    run = trained[kind]
    now, before = run.learner.state_dict(), make_learner(run.config, run.assets).state_dict()
    moved = {name for name in now if not torch.equal(now[name], before[name])}
    plain = make_learner(config_of(Path(), kind, model__backbone__lora__rank=0))
    learned = {name for name, parameter in plain.named_parameters() if parameter.requires_grad}
    layers = ("language.layers.", "embed_tokens", "backbone.output")
    stopped = {name for name in learned if any(part in name for part in layers) and "norm" not in name}
    assert {name for name, p in run.learner.named_parameters() if p.requires_grad} == learned - stopped | adapters(now)
    assert adapters(now) <= moved and not stopped & moved
    assert any("layernorm" in name for name in moved) and any("projector" in name for name in moved)
    assert all(rows(run.folder)[0][term] > 0 for term in ("loss_text", "loss_mcp", "loss_align"))


def test_only_some_layers(tmp_path: Path) -> None:
    some = make_learner(config_of(tmp_path, model__backbone__lora__layers=("q_proj", "v_proj")))
    assert {name.split(".")[-2] for name in adapters(some.state_dict())} == {"q_proj", "v_proj"}
    assert not any(p.requires_grad for name, p in some.named_parameters() if "mlp" in name and "vla" in name)
    with pytest.raises(ConfigError, match=r"lora\.layers.*qkv.*down_proj, gate_proj, k_proj"):
        make_learner(config_of(tmp_path, model__backbone__lora__layers=("q_proj", "qkv")))
    with pytest.raises(ConfigError, match=r"lora\.rank"):
        config_of(tmp_path, model__backbone__lora__rank=-1).check()


@everyone
def test_a_resumed_run_is_the_unbroken_one(trained: dict[str, Pretraining], tmp_path: Path, kind: str) -> None:
    broken = make_run(config_of(tmp_path, kind))
    whole = broken.shares

    def failing(first: int):
        for i, share in enumerate(whole(first)):
            if i == 3:
                raise Killed
            yield share

    broken.shares = failing
    with pytest.raises(Killed):
        train(broken)
    again = make_run(config_of(tmp_path, kind))
    assert again.resume_from is not None and history.step_of(again.resume_from) == 2
    train(again)
    assert rows(again.folder) == rows(trained[kind].folder)
    for name, value in trained[kind].learner.state_dict().items():
        assert torch.equal(value, again.learner.state_dict()[name]), name


@everyone
def test_a_checkpoint_has_them_and_an_export_has_them_merged(
    trained: dict[str, Pretraining], tmp_path: Path, kind: str
) -> None:
    """What `jala generate`, `jala evaluate` and transformers read."""
    run = trained[kind]
    whole = checkpoint.load(newest(run.config))
    wanted = run.learner.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in whole.learner.state_dict().items())
    jala_ray.export(run.folder, str(tmp_path / "out"))
    merged = jala_ray.load(str(tmp_path / "out"))
    assert merged.config.model.backbone.lora.rank == 0 and "LoRA" in (tmp_path / "out/README.md").read_text()
    plain = make_learner(config_of(tmp_path, kind, model__backbone__lora__rank=0)).state_dict()
    assert merged.learner.state_dict().keys() == plain.keys()
    theirs = losses(whole.learner, run.config)
    for name, value in losses(merged.learner, run.config).items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-5)
    layer = whole.learner.vla.backbone.blocks[1].get_submodule("mlp.down_proj")
    assert isinstance(layer, LoraLinear)
    x = torch.randn(7, layer.in_features)
    flat = merged.learner.vla.backbone.blocks[1].get_submodule("mlp.down_proj")
    assert type(flat) is nn.Linear and not torch.equal(flat.weight, layer.weight)
    torch.testing.assert_close(flat(x), layer(x), atol=1e-5, rtol=1e-5)


def begun(folder: Path, preset: str = "tiny", **values: Any) -> tuple[TakenOver, Learner]:
    config = small(PRESETS[preset], model__backbone__language__tie_embeddings=False, seed=3, **values)
    assets = make_assets(config)
    learner = make_learner(config, assets)
    return checkpoint.take_over(learner, folder, config, assets), learner


@pytest.mark.parametrize("preset", ["tiny", "tiny_no_lsp"])
@pytest.mark.parametrize("rank", [0, 2, 4])
def test_a_run_begins_with_a_checkpoint_that_has_adapters(
    trained: dict[str, Pretraining], preset: str, rank: int
) -> None:
    """With the same ones they go on; without, or with others, they are merged. Another objective changes nothing of that."""
    run = trained["internvl"]
    taken, learner = begun(Path(newest(run.config)), preset, model__backbone__lora__rank=rank)
    assert ("adapters" in taken.new) == (rank == 2) and "vla" in taken.taken
    assert ("adapters" in str(taken)) == (rank == 2)
    mine, theirs = learner.state_dict(), run.learner.state_dict()
    name = "vla.backbone.language.layers.0.mlp.up_proj."
    assert torch.equal(mine[f"{name}weight"], theirs[f"{name}weight"]) == (rank == 4)
    if rank == 4:
        assert all(torch.equal(mine[n], theirs[n]) for n in adapters(mine))
    x = torch.randn(1, 3, learner.vla.backbone.hidden_size)
    ours, gone = (m.vla.backbone.blocks[0].get_submodule("mlp")(x) for m in (learner, run.learner))
    torch.testing.assert_close(ours, gone, atol=1e-5, rtol=1e-5)


def test_a_run_with_adapters_begins_with_a_whole_checkpoint(tmp_path: Path) -> None:
    config = run_config(tmp_path, model__backbone__language__tie_embeddings=False, seed=11)
    learner = make_learner(config)
    checkpoint.write(tmp_path / "made", config, learner, make_assets(config), None, Position())
    taken, mine = begun(tmp_path / "made", **RANK)
    assert taken.new == ("adapters",) and str(taken).endswith("new: adapters")
    weights, stored = mine.state_dict(), learner.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in stored.items())
    theirs = losses(learner, config)
    assert all(torch.equal(value, theirs[name]) for name, value in losses(mine, config).items())


def test_an_export_is_a_beginning_too(trained: dict[str, Pretraining], tmp_path: Path) -> None:
    run = trained["internvl"]
    shutil.copytree(newest(run.config), tmp_path / "made", ignore=shutil.ignore_patterns("COMMIT.json"))
    storage.upload_dir(tmp_path / "made", str(tmp_path / "step-00000004"))
    jala_ray.export(str(tmp_path / "step-00000004"), str(tmp_path / "out"))
    taken, learner = begun(tmp_path / "out", **RANK)
    assert taken.new == ("adapters",)
    theirs = losses(run.learner, run.config)
    for name, value in losses(learner, run.config).items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-5)
