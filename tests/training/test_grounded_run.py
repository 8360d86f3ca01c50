"""A run of `grounded` from its first step to a loaded checkpoint: its teacher is fitted once, kept beside the cache, and stays with the
run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.data.cache.making import Contents, begin
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.models.inverse_dynamics import InverseDynamics
from jala_ray.objectives.grounded import Grounded
from jala_ray.parsing import override
from jala_ray.presets import PRESETS
from jala_ray.storage import StorageOptions
from jala_ray.training import checkpoint, history, setup
from jala_ray.training.build import build_assets
from jala_ray.training.local import run_local
from jala_ray.training.parts import do_parts
from tests.support import make_assets, small


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Over a small world and its cache."""
    folder = tmp_path_factory.mktemp("grounded")
    world = WorldConfig(
        lab_train=24, lab_val=4, wild_train=24, wild_val=4, labelled_share=0.5, width=64, height=48, fps=(15,)
    )
    manifest = str(generate(folder / "world", world))
    made = small(PRESETS["tiny_grounded"], train__steps=4, train__batch=4, train__micro_batch=4)
    made = replace(made, storage=replace(made.storage, root=str(folder / "runs")))
    tokenizer = folder / "tokenizer"
    assets = make_assets(made)
    assert assets.motion is not None
    assets.motion.save(tokenizer)
    made = replace(made, motion_tokenizer=str(tokenizer), data=replace(made.data, manifest=manifest))
    cache = str(folder / "cache")
    with storage.scratch("assets") as scratch:
        assets, manifest_file = build_assets(made, scratch), Manifest(manifest)
        held = Contents("all"), StorageOptions()
        making = begin(cache, manifest_file, assets, made.model.encoder, *held, gpu=True)
    do_parts(making.missing(), making.job, StorageOptions(), local=True, quiet=True)
    making.finish(0.0)
    return replace(made, data=replace(made.data, cache=cache))


def run(base: RunConfig, name: str, **change: object) -> RunConfig:
    config = override(replace(base, name=name), {"train.checkpoint_every": 2, "train.validate_every": 4, **change})
    run_local(config)
    return config


def loaded(config: RunConfig) -> tuple[Grounded, InverseDynamics]:
    objective = checkpoint.load(history.address(setup.run_folder(config), 4)).learner.objective
    assert isinstance(objective, Grounded) and objective.teacher is not None
    return objective, objective.teacher


def test_one_fit_serves_all_runs_over_a_cache(base: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(base, "first")
    said = capsys.readouterr().out
    assert "teacher: R2 on held-out clips of lab" in said
    (kept,) = Path(base.data.cache, "teachers").iterdir()
    written = (kept / "teacher.safetensors").stat().st_mtime_ns
    second = run(base, "second", **{"objective.align.clips": "labelled", "seed": 1})
    third = run(base, "third", **{"objective.teacher.form": "learned"})
    assert (kept / "teacher.safetensors").stat().st_mtime_ns == written and len(list(kept.parent.iterdir())) == 1
    teachers = [loaded(config)[1] for config in (first, second, third)]
    assert all(torch.equal(teacher.weights, teachers[0].weights) for teacher in teachers)
    assert loaded(third)[0].reader is not None


def test_videos_and_their_cache_give_one_teacher(base: RunConfig) -> None:
    """But for what the cache rounds: features are stored in halves."""
    over_videos = run(replace(base, data=replace(base.data, cache="")), "videos")
    over_cache = run(base, "cached")
    (_, one), (_, other) = loaded(over_videos), loaded(over_cache)
    torch.testing.assert_close(one.motion.directions, other.motion.directions)
    assert torch.equal(one.landmark_hand, other.landmark_hand)
    torch.testing.assert_close(one.landmarks, other.landmarks, atol=1e-3, rtol=1e-2)


def test_other_settings_have_a_teacher_of_their_own(base: RunConfig) -> None:
    before = set(Path(base.data.cache, "teachers").iterdir())
    run(base, "fewer", **{"objective.teacher.directions": 8})
    (new,) = set(Path(base.data.cache, "teachers").iterdir()) - before
    assert new.is_dir()
