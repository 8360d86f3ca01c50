"""What is run in a tree with all additions: `python -m tests.additions.chain FOLDER`. From a source of the added format to a report."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from jala_ray.commands.evaluate import Arguments, run
from jala_ray.commands.shell import main as jala
from jala_ray.config import GenerationConfig, RunConfig
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.presets import PRESETS
from jala_ray.reports.run.publish import publish_pretrain_report
from jala_ray.training.checkpoint import load
from jala_ray.training.local import run_local
from jala_ray.types import HandState
from tests.end_to_end.conftest import World, train_quickly
from tests.end_to_end.test_ray import settings
from tests.support import small


def write_source(folder: Path, world: str) -> None:
    """Labelled clips of a synthetic world as videos, tracks and words of their own."""
    folder.mkdir()
    for number, clip in enumerate(map(Manifest(world).clip, range(len(Manifest(world))))):
        frames = len(clip.pose_time_s)
        tracks = {"time_s": clip.start_s + clip.pose_time_s.astype(np.float64)}
        for name, shape in {"valid": (), "theta": (15, 3), "rot": (3,), "wrist": (3,)}.items():
            held = [getattr(hand, name) for hand in clip.hands]
            there = [hand.state is HandState.LABELLED for hand in clip.hands]
            blank = np.zeros((frames, *shape), held[0].dtype)
            tracks[name] = np.stack([one if is_there else blank for one, is_there in zip(held, there, strict=True)])
        tracks["beta"] = np.stack([hand.beta for hand in clip.hands])
        assert clip.video_uri is not None
        np.savez(folder / f"take{number:02}.npz", allow_pickle=False, **tracks)
        (folder / f"take{number:02}.txt").write_text(clip.instructions[0])
        shutil.copy(clip.video_uri, folder / f"take{number:02}.mp4")


def trained(world: World, folder: Path, name: str, preset: str, **values: object) -> RunConfig:
    shared = settings(world, folder / "runs", name, train__steps=2, train__checkpoint_every=2, train__validate_every=2)
    preset_config = small(PRESETS[preset], **values)
    config = RunConfig(**{**vars(shared), "model": preset_config.model, "objective": preset_config.objective})
    run_local(config)
    publish_pretrain_report(str(folder / "runs" / name), config.data.manifest)
    return config


def questions(folder: Path, manifest: Manifest) -> str:
    """The same clips, each with a question about it."""
    asked = [
        replace(clip, task_type="question", instructions=("What does the hand do",), description=clip.instructions[0])
        for clip in manifest
    ]
    return write_manifest(asked, folder / "questions.parquet").path


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    plan = WorldConfig(lab_train=10, lab_val=0, wild_train=0, wild_val=0, width=96, height=72, seconds=(1.0, 2.0))
    write_source(folder / "takes", str(generate(folder / "world", plan)))
    manifest = str(folder / "manifest.parquet")
    assert jala(["convert", "hand-tracks", "--folder", str(folder / "takes"), "--val-fraction", "0.4", manifest]) == 0
    assert jala(["validate", manifest]) == 0
    assert jala(["inspect", manifest]) == 0
    world = World(manifest, train_quickly((manifest,), folder / "tokenizer", steps=20))
    trained(world, folder, "cloning", "tiny_motion_cloning")
    trained(world, folder, "raw", "tiny", model__encoder__kind="raw_patches")
    trained(world, folder, "plain", "tiny", model__backbone__kind="plain")
    assert jala(["export", str(folder / "runs" / "plain"), str(folder / "exported")]) == 0
    assert load(str(folder / "exported")).learner.vla.backbone.config.kind == "plain"
    asked = questions(folder, Manifest(manifest))
    trained(World(asked, world.tokenizer), folder, "asked", "tiny")
    assert jala(["inspect", asked]) == 0
    runs = tuple(str(folder / "runs" / name) for name in ("cloning", "raw", "plain"))
    settings_of = GenerationConfig(passes=2, ensemble=1)
    assert run(Arguments(str(folder / "evaluation"), runs, generation=settings_of, videos=0, local=True)) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
