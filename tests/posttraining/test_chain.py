"""From a manifest of robot episodes to a post-trained policy: init from pretraining, validation, error of actions, resume, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jala_ray import storage
from jala_ray.commands import shell
from jala_ray.config import RunConfig
from jala_ray.data.samples.flow_recipe import FlowRecipe
from jala_ray.objectives.flow import Flow
from jala_ray.parsing import override, to_dict
from jala_ray.presets import PRESETS
from jala_ray.reports.run.publish import publish_pretrain_report
from jala_ray.storage import StorageOptions
from jala_ray.training import checkpoint
from jala_ray.training.build import build_assets, build_learner
from jala_ray.training.checkpoint import Position, TakenOver, take_over
from jala_ray.training.export import write_export
from jala_ray.training.local import run_local
from tests.additions.robots import write_robots
from tests.support import make_assets, small
from tests.training.test_loop import rows

STEPS, WORDS = 20, 400


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of two-camera episodes, a motion tokenizer, and a pretrained checkpoint of the objective jala."""
    folder = tmp_path_factory.mktemp("posttraining")
    write_robots(folder / "world", episodes=12)
    motion = make_assets(small()).motion
    assert motion is not None
    motion.save(folder / "tokenizer")
    sizes = {"motion_tokenizer": str(folder / "tokenizer"), "model.text.vocab_size": WORDS}
    pretrained = override(small(PRESETS["tiny"], seed=11), sizes)
    assets = build_assets(pretrained, folder / "scratch")
    made = folder / "pretrained"
    checkpoint.write(made, pretrained, build_learner(pretrained, assets), assets, None, Position())
    storage.upload_dir(made, str(folder / "checkpoint"), StorageOptions())
    return folder


def settings(world: Path, name: str, **values: Any) -> RunConfig:
    base: dict[str, Any] = {
        "name": name,
        "storage__root": str(world / "runs"),
        "data__manifest": str(world / "world/robots.parquet"),
        "motion_tokenizer": str(world / "tokenizer"),
        "data__workers": 0,
        "model__text__vocab_size": WORDS,
        "objective__state": ("state",),
        "objective__action": ("action",),
        "objective__views": ("", "wrist"),
        "objective__latents": "none",
        "optim__lr": 3e-3,
        "train__steps": STEPS,
        "train__batch": 6,
        "train__micro_batch": 3,
        "train__log_every": 1,
        "train__checkpoint_every": 10,
        "train__validate_every": 10,
        "train__monitor_every": 10,
        "train__average": 0.9,
        "train__evaluate": (("action_error", 10),),
        "log__tensorboard": False,
    }
    return small(PRESETS["tiny_libero_spatial"], **(base | values))


@pytest.fixture(scope="module")
def trained(world: Path) -> RunConfig:
    config = settings(world, "robot")
    run_local(config)
    return config


def test_it_learns_and_is_measured(world: Path, trained: RunConfig) -> None:
    steps = rows(str(world / "runs/robot"))
    assert np.mean([row["loss_flow"] for row in steps[-5:]]) < np.mean([row["loss_flow"] for row in steps[:5]])
    last = steps[-1]
    assert last["quarantined"] == 0 and last["val/robot/loss_flow"] > 0
    found = {
        name: last[f"eval/action_error/robot/{name}"] for name in ("model", "blind", "mean_action", "first_action")
    }
    assert all(value > 0 for value in found.values()) and found["model"] != found["blind"]
    assert all(f"eval/action_error/robot/model/dimension_{i}" in last for i in range(7))
    assert "eval/action_error/robot/model/dimension_7" not in last
    assert "eval/action_error/failed" not in last


def test_what_is_trivial_is_measured_as_it_is(world: Path, trained: RunConfig) -> None:
    """The mean action's error against the held-out rows themselves."""
    loaded = checkpoint.load(str(world / "runs/robot"))
    recipe = FlowRecipe(loaded.config, loaded.assets)
    of = recipe.statistics("action")
    assert np.allclose(recipe.mean_action("toy_arm"), of.mean) and of.size == 7
    assert loaded.assets.statistics is not None and set(loaded.assets.statistics.signals) == {"state", "action"}
    last = rows(str(world / "runs/robot"))[-1]
    overall = np.mean([last[f"eval/action_error/robot/mean_action/dimension_{i}"] for i in range(7)])
    assert last["eval/action_error/robot/mean_action"] == pytest.approx(overall)


def test_a_checkpoint_acts_by_itself(world: Path, trained: RunConfig) -> None:
    """Nothing but its folder: blocks that were dropped are not asked for; the average may be taken."""
    loaded = checkpoint.load(str(world / "runs/robot"), averaged=True)
    backbone = loaded.learner.vla.backbone
    assert backbone.n_layers == 3 and not backbone.shortened
    architecture = json.loads(next((world / "runs/robot/checkpoints").glob("step-*20/architecture.json")).read_text())
    assert architecture["backbone"]["text_config"]["num_hidden_layers"] == 3
    recipe = FlowRecipe(loaded.config, loaded.assets)
    laid = recipe.observe({"state": np.zeros(7, np.float32)}, 2, "Go to the left.", "toy_arm")
    laid.pictures = {"image": np.zeros((2, 3, 28, 28), np.uint8)}
    recipe.seen(laid, trains=False)
    batch, objective = recipe.collate([laid]), loaded.learner.objective
    assert isinstance(objective, Flow)
    with torch.no_grad():
        _, out, _ = loaded.learner.run(batch)
        actions = objective.sample(loaded.learner.vla, batch, out, torch.randn(1, 8, 32))
    restored = recipe.restored(actions.numpy(), "toy_arm")
    assert restored.shape == (1, 8, 7) and np.isfinite(restored).all()


def test_pages_and_exports_have_it(world: Path, trained: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    publish_pretrain_report(str(world / "runs/robot"), trained.data.manifest)
    page = (world / "runs/robot/report.html").read_text()
    assert "action_error" in page and "Objective flow" in page and "blind" in page
    assert shell.main(["report", str(world / "runs/robot")]) == 0
    exported = write_export(str(world / "runs/robot"), str(world / "exported"))
    assert exported.parameters["objective"] > 0
    again, stored = checkpoint.load(str(world / "exported")), checkpoint.load(str(world / "runs/robot"))
    for name, value in stored.learner.state_dict().items():
        assert torch.equal(again.learner.state_dict()[name], value), name
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(world / "exported/backbone")
    assert len(model.model.language_model.layers) == 3


# --- beginning with what was pretrained ------------------------------------------------------------------------------


def begun(world: Path, **values: Any) -> tuple[TakenOver, Any, dict[str, torch.Tensor]]:
    config = settings(world, "begun", init=str(world / "checkpoint"), **values)
    assets = build_assets(config, world / "scratch")
    learner = build_learner(config, assets)
    theirs = checkpoint.stored_weights(world / "checkpoint")
    return take_over(learner, world / "checkpoint", config, assets), learner, {n: theirs.tensor(n) for n in theirs}


def test_init_gives_the_vla_and_leaves_blocks_above(world: Path) -> None:
    taken, learner, theirs = begun(world)
    assert (taken.taken, taken.new, taken.left) == (
        ("encoder", "vla"),
        ("objective.head",),
        ("objective.lap", "objective.lsp"),
    )
    own = learner.vla.state_dict(prefix="vla.")
    assert own and all(torch.equal(value, theirs[name]) for name, value in own.items())
    assert sum(".layers.3." in name for name in theirs) > 0 and not any("language.layers.3." in name for name in own)


def test_latents_are_those_of_the_checkpoint(world: Path) -> None:
    taken, learner, theirs = begun(world, objective__latents="fixed")
    assert "objective.lsp" in taken.taken
    for name, value in learner.objective.lsp.state_dict(prefix="objective.lsp.").items():
        assert torch.equal(value, theirs[name]), name


def test_the_command_begins_with_a_checkpoint(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`jala posttrain --local`, with LSP's latents; the run that is not made shows its cost."""
    values = {"train__steps": 2, "train__val_samples": 2, "train__average": 0.0, "objective__latents": "fixed"}
    config = settings(world, "by_command", init=str(world / "checkpoint"), **values)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    words = ["posttrain", str(tmp_path / "config.json"), "--local"]
    assert shell.main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "(computed)" in said and "a GPU of 24 GB holds it" in said and "steps 2," in said
    assert shell.main(words) == 0
    said = capsys.readouterr().out
    assert "taken: encoder, vla, objective.lsp; new: objective.head" in said and "report: " in said
    loaded = checkpoint.load(str(world / "runs/by_command"))
    theirs = checkpoint.stored_weights(world / "checkpoint")
    for name, value in loaded.learner.state_dict().items():
        if name.startswith(("objective.lsp.", "vla.backbone.vision.", "vla.backbone.projector.")):
            assert torch.equal(value, theirs.tensor(name)), name
