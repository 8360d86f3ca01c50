"""What is run in a tree with the added signal: `python -m tests.additions.robot_chain FOLDER [--ray]`. From episodes to a report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jala_ray.commands.shell import main as jala
from jala_ray.config import RunConfig
from jala_ray.parsing import override, to_dict
from jala_ray.presets import PRESETS
from jala_ray.reports.run.publish import publish_pretrain_report
from jala_ray.training.checkpoint import load
from jala_ray.training.local import run_local
from tests.additions.robots import write_robots
from tests.ray_start import local_ray
from tests.support import small

PRESET, STEPS = "tiny_action_regression", 30


def settings(folder: Path, name: str, **values: object) -> RunConfig:
    shared: dict[str, Any] = {
        "name": name,
        "storage__root": str(folder / "runs"),
        "data__manifest": str(folder / "world/robots.parquet"),
        "motion_tokenizer": "",
        "data__workers": 0,
        "optim__lr": 1e-2,
        "train__steps": STEPS,
        "train__batch": 6,
        "train__micro_batch": 3,
        "train__log_every": 1,
        "train__checkpoint_every": 15,
        "train__validate_every": 15,
        "train__evaluate": (("regression_error", 15),),
        "log__tensorboard": False,
        "cluster__max_failures": 0,
    }
    return small(PRESETS[PRESET], **(shared | values))


def resumed(folder: Path) -> None:
    """A run that is told to stop after half its steps and goes on."""
    config = settings(folder, "resumed")
    place = folder / "runs/resumed"

    class Stopped(Exception):
        pass

    from jala_ray.training.saving import Row, Saver
    from jala_ray.training.staging import Staged

    begin = Saver.begin

    def once(self: Saver, stage: Callable[[], Staged], address: str, row: Row) -> None:
        begin(self, stage, address, row)
        self.finish()
        raise Stopped

    Saver.begin = once
    try:
        run_local(config)
        raise AssertionError("it was to stop")
    except Stopped:
        Saver.begin = begin
    assert (place / "checkpoints/step-00000015").is_dir()
    run_local(config)


def main(folder: Path, with_ray: bool) -> None:
    torch.set_num_threads(1)
    manifest = write_robots(folder / "world", episodes=16)
    if with_ray:
        from jala_ray.training.launch import launch

        run_local(settings(folder, "local"))
        with local_ray():
            launch(settings(folder, "ray"))
        return
    assert jala(["validate", manifest, "--videos", "all"]) == 0
    assert jala(["inspect", manifest]) == 0
    for store in ("codes", "all"):
        (folder / "preset.json").write_text(json.dumps(to_dict(override(settings(folder, "cached"), {"name": "x"}))))
        words = [str(folder / "preset.json"), str(folder / store), "--store", store, "--local"]
        assert jala(["cache", *words]) == 0
    run_local(settings(folder, "local"))
    for store in ("codes", "all"):
        run_local(settings(folder, store, data__cache=str(folder / store), data__manifest=""))
    resumed(folder)
    publish_pretrain_report(str(folder / "runs/local"), manifest)
    loaded = load(str(folder / "runs/local"))
    assert loaded.assets.motion is None and loaded.assets.statistics is not None
    (folder / "fingerprint").write_text(loaded.assets.statistics.fingerprint)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--ray" in sys.argv)
