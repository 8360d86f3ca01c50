"""Can it learn to say what it sees? Six clips with descriptions by heart, through videos, training, checkpoint and evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jala_ray.data.manifest.table import Manifest
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.training import setup
from jala_ray.training.local import run_local
from jobs.evaluate import main as evaluate
from tests.end_to_end.conftest import World, train_quickly
from tests.end_to_end.test_ray import settings

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1800)
def test_descriptions_by_heart(tmp_path: Path) -> None:
    config = WorldConfig(
        seed=3,
        lab_train=6,
        lab_val=0,
        wild_train=0,
        wild_val=0,
        seconds=(1.0, 2.0),
        width=64,
        height=48,
        task_shares=(0.0, 0.0, 1.0),
    )
    manifest = str(generate(tmp_path / "world", config))
    clips = list(Manifest(manifest))
    assert {clip.task_type for clip in clips} == {"description"}
    world = World(manifest, train_quickly((manifest,), tmp_path / "tokenizer", steps=30))
    steps = 200
    run = settings(
        world,
        tmp_path,
        "overfit",
        train__steps=steps,
        train__micro_batch=6,
        train__checkpoint_every=steps,
        train__validate_every=steps,
        train__log_every=50,
        train__monitor_every=steps,
        optim__lr=5e-3,
        model__text__vocab_size=400,
    )
    run_local(run)
    out = tmp_path / "evaluation"
    evaluate([str(out), setup.run_folder(run), "--task", "description", "--split", "train", "--local"])
    figures = json.loads((out / "evaluation.json").read_text())
    told = {clip["clip_id"]: clip["texts"]["overfit"] for clip in figures["scores"]["clips"]}
    assert told == {clip.clip_id: clip.description for clip in clips}
    assert figures["scores"]["table"]["overfit"]["lab"]["mean"] == 100.0
    assert len(set(told.values())) > 1 and figures["warnings"] == []
