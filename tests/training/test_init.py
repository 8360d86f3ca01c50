"""Runs that begin with another run's weights: what is taken, what is new, and what is refused (`checkpoint.take_over`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.data.samples.assets import Assets
from jala_ray.presets import PRESETS
from jala_ray.training import checkpoint
from jala_ray.training.checkpoint import Position, TakenOver, take_over
from jala_ray.training.learner import Learner
from jala_ray.training.trainer import restore
from jala_ray.types import CheckpointError, ConfigError
from tests.support import make_assets, make_learner, small
from tests.training.run import make_run, run_config


def made(name: str, words: int, values: dict[str, object]) -> tuple[RunConfig, Assets, Learner]:
    """A learner of the preset; `words` more text tokens than usual."""
    config = small(PRESETS[f"tiny_{name}"] if name else PRESETS["tiny"], **values)
    assets = make_assets(config)
    vocab = replace(assets.spec.vocab, text=assets.spec.vocab.text + words)
    assets.spec = replace(assets.spec, vocab=vocab)
    return config, assets, make_learner(config, assets)


def store(folder: Path, name: str, words: int = 0, **values: object) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint of the preset with weights of its own, and those weights."""
    config, assets, learner = made(name, words, values | {"seed": 11})
    checkpoint.write(folder, config, learner, assets, None, Position())
    return folder, learner.state_dict()


def begin(folder: Path, name: str, words: int = 0, **values: object) -> tuple[TakenOver, Learner, dict[str, Tensor]]:
    """A learner of the preset that begins with the checkpoint; and the weights it had before."""
    config, assets, learner = made(name, words, values)
    before = {n: tensor.clone() for n, tensor in learner.state_dict().items()}
    return take_over(learner, folder, config, assets), learner, before


def equal(learner: Learner, weights: dict[str, Tensor], part: str) -> bool:
    own = learner.state_dict()
    names = [n for n in own if n.startswith(f"{part}.")]
    assert names, part
    return all(torch.equal(own[n], weights[n]) for n in names)


def test_the_same_objective_is_taken_whole(tmp_path: Path) -> None:
    folder, theirs = store(tmp_path, "align_only")
    taken, learner, before = begin(folder, "")
    assert taken == TakenOver(("encoder", "vla", "objective.lap", "objective.lsp"), (), ())
    assert not torch.equal(before["vla.motion_head.weight"], theirs["vla.motion_head.weight"])
    for name, value in learner.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("no_lsp", ("objective.lap",)),
        ("no_align", ("objective.lsp",)),
        ("next_token", ()),
        ("next_token_dino", ("objective.lsp",)),
    ],
)
def test_another_objective_leaves_its_own_modules(tmp_path: Path, name: str, new: tuple[str, ...]) -> None:
    """Those of the same name too: LAP and LSP begin alike or not at all."""
    folder, theirs = store(tmp_path, "")
    taken, learner, before = begin(folder, name)
    assert taken == TakenOver(("encoder", "vla"), new, ("objective.lap", "objective.lsp"))
    assert equal(learner, theirs, "vla") and equal(learner, theirs, "encoder")
    assert not equal(learner, before, "vla")
    assert all(equal(learner, before, part) for part in new)


def test_the_three_stages_of_lapa(tmp_path: Path) -> None:
    """The first stage gives its latent-action model alone, to a VLA of any size and vocabulary; the second its VLA alone."""
    folder, first = store(tmp_path / "1", "lapa_actions", words=5, model__backbone__language__hidden=48)
    taken, learner, before = begin(folder, "lapa_codes")
    left = ("encoder", "vla", "objective.forward_model")
    assert taken == TakenOver(("objective.actions",), ("encoder", "vla", "objective.head"), left)
    assert equal(learner, first, "objective.actions") and not equal(learner, before, "objective.actions")
    assert equal(learner, before, "vla") and equal(learner, before, "objective.head")
    assert str(taken) == (
        "taken: objective.actions; new: encoder, vla, objective.head; not taken: encoder, vla, objective.forward_model"
    )

    folder, second = store(tmp_path / "2", "lapa_codes")
    taken, learner, before = begin(folder, "no_align")
    assert taken == TakenOver(("encoder", "vla"), ("objective.lsp",), ("objective.actions", "objective.head"))
    assert equal(learner, second, "vla") and equal(learner, before, "objective.lsp")
    assert all(parameter.requires_grad for parameter in learner.vla.motion_head.parameters()), "real tokens train it"


@pytest.mark.parametrize(
    ("of", "name", "values", "message"),
    [
        ("lapa_actions", "next_token", {}, "a run of next_token can begin with"),
        ("lapa_actions", "", {}, "a run of jala can begin with"),
        ("", "lapa_codes", {}, r"objective\.actions.*absent"),
        ("lapa_actions", "lapa_codes", {"objective__actions__codes": 4}, r"codebooks.*stored \(4, 8"),
        ("lapa_actions", "lapa_codes", {"model__encoder__image_size": 64}, "encoder"),
        ("", "no_lsp", {"model__backbone__language__hidden": 48}, "stored"),
        ("", "", {"objective__perceiver__width": 32}, "stored"),
        ("", "no_lsp", {"words": 5}, "text tokenizer"),
        ("", "", {"words": 5}, "text tokenizer"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, of: str, name: str, values: dict, message: str) -> None:
    folder, _ = store(tmp_path, of)
    with pytest.raises(CheckpointError, match=message):
        begin(folder, name, **values)


def test_codes_of_another_motion_tokenizer_are_refused(tmp_path: Path) -> None:
    folder, _ = store(tmp_path, "")
    config = small(PRESETS["tiny_no_lsp"])
    assets = make_assets(config)
    next(iter(assets.motion.parameters())).data.add_(1.0)
    with pytest.raises(CheckpointError, match="motion tokenizer"):
        take_over(make_learner(config, assets), folder, config, assets)


def test_a_run_says_what_it_began_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, theirs = store(tmp_path / "written", "no_lsp")
    address = str(tmp_path / "checkpoint")
    storage.upload_dir(folder, address)
    config: RunConfig = run_config(tmp_path, init=address)
    said = f"init {address}: taken: encoder, vla; new: objective.lap, objective.lsp; not taken: objective.lap\n"
    for rank in (0, 1):
        run = make_run(config, rank=rank)
        run.begin()
        assert restore(run) == 0
        assert equal(run.learner, theirs, "vla")
        assert capsys.readouterr().out == (said if rank == 0 else "")


def test_of_a_run_folder_the_newest_checkpoint_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, name in ((5, "align_only"), (10, "no_lsp")):
        folder, theirs = store(tmp_path / name, name)
        storage.upload_dir(folder, str(tmp_path / f"before/checkpoints/step-{step:08d}"))
    run = make_run(run_config(tmp_path, init=str(tmp_path / "before")))
    run.begin()
    assert restore(run) == 0 and equal(run.learner, theirs, "vla")
    said = f"init {tmp_path}/before/checkpoints/step-00000010: taken: encoder, vla; new: objective.lap"
    assert capsys.readouterr().out.startswith(said)
    with pytest.raises(ConfigError, match="a run folder with one under checkpoints/"):
        restore(make_run(run_config(tmp_path, init=str(tmp_path / "no_lsp"))))
