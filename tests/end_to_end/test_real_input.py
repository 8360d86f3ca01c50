"""Real video and real motion through the same path, no code of their own: VITRA, dex-retargeting, ARCTIC."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from jala_ray.data.adapters.arctic import Arctic
from jala_ray.data.adapters.dex_retargeting import DexRetargeting
from jala_ray.data.adapters.vitra import Vitra
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.training import setup
from jala_ray.training.local import run_local
from jala_ray.types import HandState
from tests.end_to_end.conftest import World, train_quickly
from tests.end_to_end.test_ray import rows, settings


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("real")
    videos = chain(
        Vitra(str(shared_data / "vitra_ego4d")).clips(),
        DexRetargeting(str(shared_data / "dexretargeting_hand")).clips(),
    )
    report = write_manifest(videos, folder / "videos.parquet")
    assert report.quarantined == 0
    one = folder / "arctic"
    one.mkdir()
    sequence = sorted((shared_data / "arctic_dexmachina").glob("*.npz"))[0]
    (one / sequence.name).symlink_to(sequence)
    motion = folder / "motion.parquet"
    write_manifest(Arctic(str(one), iterations=50).clips(), motion)
    return World(str(folder / "videos.parquet"), train_quickly((str(motion),), folder / "tokenizer", steps=40))


def test_what_the_manifest_says(real: World) -> None:
    clips = {clip.source: clip for clip in Manifest(real.manifest)}
    vitra, dex = clips["vitra"], clips["dex-retargeting"]
    assert [hand.state for hand in vitra.hands] == [HandState.UNTRACKED, HandState.LABELLED]
    assert vitra.domain == "wild" and vitra.time_scale == 0.5 and vitra.n_chunks == 1
    assert [hand.state for hand in dex.hands] == [HandState.UNTRACKED, HandState.UNTRACKED]
    assert dex.task_type == "pure_video"


def test_training_on_real_video(real: World, tmp_path: Path) -> None:
    config = settings(real, tmp_path, "real", train__steps=3, train__batch=6, train__log_every=1)
    run_local(replace(config, seed=1))
    last = rows(config)[-1]
    assert last["samples"] == 18 and last["quarantined"] == 0
    assert last["loss_align"] is not None and last["loss_mcp"] is not None
    errors = Path(setup.run_folder(config), "errors.jsonl").read_text()
    assert [json.loads(line) for line in errors.splitlines()] == []
