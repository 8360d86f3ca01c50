"""`jala rollouts run` in the world of `reach_world.py`, as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from jala_ray.commands import shell

ROOT = Path(__file__).resolve().parents[2]
WORLD = str(Path(__file__).with_name("reach_world.py"))
SEEING = "tests.rollouts.policies:seeing"


def words(out: Path, *more: str, policy: str | None = SEEING, tasks: tuple[str, ...] = ("reach",)) -> list[str]:
    asked = ["rollouts", "run", *([policy] if policy else []), "--simulator", WORLD, "--out", str(out), "--size", "64"]
    return [*asked, "--tasks", *tasks, "--answer-s", "20", *more]


def run(out: Path, *more: str, status: int = 0, **asked: Any) -> dict[str, Any]:
    """Scores of a run in this process."""
    assert shell.main(words(out, *more, **asked)) == status
    return scores(out)


def scores(out: Path) -> dict[str, Any]:
    return json.loads((out / "scores.json").read_text())


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (out / "rollouts.jsonl").read_text().splitlines()]


def begun(out: Path, *more: str, **asked: Any) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "jala_ray", *words(out, *more, **asked)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
    )
