"""The evaluator `generation`: motion of held-out clips of videos, while a run trains."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jala_ray.config import GenerationConfig, RunConfig
from jala_ray.config.evaluators import evaluator
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.evaluation.predict import MeanMotion, Predictor, rows_to_evaluate
from jala_ray.evaluation.scores import score_clips
from jala_ray.generation import Generator
from jala_ray.hands.metrics import METRICS
from jala_ray.parsing import override
from jala_ray.training import checkpoint, history, setup
from jala_ray.training.evaluating import Moment
from jala_ray.training.local import run_local
from jala_ray.types import ConfigError, ManifestError
from tests.end_to_end.conftest import World
from tests.end_to_end.test_ray import rows, settings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Four steps; motion is generated after the second and the last."""
    config = settings(world, tmp_path_factory.mktemp("runs"), "run", train__steps=4, train__validate_every=4)
    config = override(config, {"train.checkpoint_every": 2, "train.evaluate": (("generation", 2),)})
    config = override(config, {"train.generation_clips": 1, "train.generation_passes": 2})
    run_local(config)
    return config


def loaded(config: RunConfig) -> checkpoint.Loaded:
    found = history.newest(setup.run_folder(config))
    assert found is not None
    return checkpoint.load(found)


def test_its_figures_are_those_of_an_evaluation(world: World, trained: RunConfig) -> None:
    """Of the checkpoint that the last step left, with the same settings: the run's learner was the model."""
    found = rows(trained)
    assert [row["step"] for row in found if "eval/generation/clips" in row] == [2, 4]
    manifest = Manifest(world.manifest)
    model = Generator(loaded(trained), GenerationConfig(passes=2, ensemble=1), CPU)
    chosen = rows_to_evaluate(manifest, "val", 1).tolist()
    ask = Predictor(manifest, {"it": model}, MeanMotion.of(manifest), batch=1)
    scores = score_clips(list(ask.records(chosen)), ["it"])
    assert found[-1]["eval/generation/clips"] == len(scores.clips) == 2
    for place, name in enumerate(METRICS):
        values = scores.values[0, :, 2, place]
        assert found[-1][f"eval/generation/{name}"] == pytest.approx(values.mean(), abs=1e-6)
        for clip, value in zip(scores.clips, values, strict=True):
            assert found[-1][f"eval/generation/{clip.domain}/{name}"] == pytest.approx(value, abs=1e-6)
    assert found[1]["eval/generation/mpjpe"] != found[-1]["eval/generation/mpjpe"], "the weights have moved"


def test_it_changes_nothing_of_the_training(trained: RunConfig) -> None:
    plain = override(replace(trained, name="plain"), {"train.evaluate": ()})
    run_local(plain)
    own, theirs = (loaded(config).learner.state_dict() for config in (trained, plain))
    assert all(torch.equal(value, theirs[name]) for name, value in own.items())
    for mine, other in zip(rows(trained), rows(plain), strict=True):
        assert mine["loss"] == other["loss"] and mine.get("val/lab/loss_mcp") == other.get("val/lab/loss_mcp")


def test_any_number_of_ranks_gives_the_same_figures(trained: RunConfig) -> None:
    """To the bit; three ranks have two clips, so one of them has none."""
    model = loaded(trained)
    trained = override(trained, {"train.generation_clips": 2})

    def figures(world: int) -> dict[str, float | None]:
        parts = []
        for rank in range(world):
            one = evaluator(trained, "generation")
            parts.append(one.part(Moment(4, model.learner, CPU, trained, model.assets, rank, world)))
        assert [len(part) for part in parts] == {1: [4], 2: [2, 2], 5: [1, 1, 1, 1, 0]}[world]
        return dict(evaluator(trained, "generation").figures(parts))

    alone = figures(1)
    assert alone["clips"] == 4 and all(value is not None and math.isfinite(value) for value in alone.values())
    assert figures(2) == figures(5) == alone


def test_without_a_held_out_label_it_is_refused_before_the_run(trained: RunConfig, tmp_path: Path) -> None:
    clips = [clip for clip in Manifest(trained.data.manifest) if clip.split == "train"]
    shutil.copytree(Path(trained.data.manifest).parent, tmp_path / "world")
    manifest = write_manifest(clips, tmp_path / "world" / "train.parquet").path
    config = override(replace(trained, name="none"), {"data.manifest": manifest, "storage.root": str(tmp_path)})
    with pytest.raises(ManifestError, match="at least one labelled clip"):
        run_local(config)
    assert not (tmp_path / "none" / "metrics.jsonl").exists()


def test_over_a_cache_alone_it_is_refused(trained: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"train\.evaluate"):
        run_local(override(replace(trained, name="cache"), {"data.manifest": "", "data.cache": "somewhere"}))
