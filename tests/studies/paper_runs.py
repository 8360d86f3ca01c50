"""The paper's table at its smallest: the command's words, and what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.parsing import override, to_dict
from jala_ray.presets import TINY
from jala_ray.studies.paper.asked import PaperStudy
from jala_ray.studies.paper.plan import PlannedStudy, plan_study
from tests.end_to_end.conftest import World
from tests.support import small

ROOT = Path(__file__).resolve().parents[2]


def of_domain(world: World, folder: Path, domain: str) -> str:
    clips = [clip for clip in Manifest(world.manifest) if clip.domain == domain]
    write_manifest(clips, folder / "part.parquet")
    return str(folder / "part.parquet")


STEPS = 4


def begins(world: World, root: Path, **values: object) -> list[str]:
    """Words of a study of models that run in milliseconds; `values` use `__` for dots."""
    config = small(TINY, log__tensorboard=False, data__workers=0, data__manifest="", motion_tokenizer=world.tokenizer)
    sizes = {"steps": STEPS, "batch": 6, "micro_batch": 3, "log_every": 1, "checkpoint_every": 2, "validate_every": 4}
    train = {f"train.{name}": value for name, value in sizes.items()} | {"train.val_samples": 2}
    given = {key.replace("__", "."): value for key, value in values.items()}
    root.mkdir(exist_ok=True)
    (root / "begin.json").write_text(json.dumps(to_dict(override(config, train | given))))
    shared = ["--preset", str(root / "begin.json"), "--storage.root", str(root), "--name", "table"]
    return [
        "study",
        "paper",
        "--manifest",
        world.manifest,
        *shared,
        "--generation.passes",
        "3",
        "--generation.ensemble",
        "1",
    ]


def planned(words: list[str], *more: str) -> PlannedStudy:
    return plan_study(PaperStudy.read([*words[2:], *more], "jala"))


def results(folder: Path) -> dict[str, Any]:
    """table.json without clocks and addresses."""
    found = json.loads((folder / "table.json").read_text())
    for name in ("environment", "base", "preset", "tokenizer"):
        found.pop(name)
    for row in found["rows"].values():
        del row["cost"], row["checkpoints"]
    return found
