"""`jala posttrain` over a LeRobot set, killed by SIGKILL: it goes on to the run that nobody killed, bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jala_ray.config import RunConfig
from jala_ray.parsing import to_dict
from jala_ray.training import history
from tests.faults.processes import KILL_AFTER, Command
from tests.policy.world import settings, write_points
from tests.training.test_loop import rows

STEPS = 12
KILLS = 6, 9
"""Steps after which an attempt dies: those since the newest checkpoint that was there by then (4 and 8, or one before) are done twice."""
BETWEEN = {f"train__{name}_every": 4 for name in ("checkpoint", "validate", "monitor")}
EXACT = "loss", "loss_flow", "grad_norm", "rows_digest", "quarantined_digest", "samples"


def posttrained(config: RunConfig, folder: Path, kill: int | None = None) -> Command:
    """`jala posttrain`, in a process of its own, to its end or to its death."""
    file, more = folder / f"{config.name}.json", {} if kill is None else {KILL_AFTER: f"step {kill}/"}
    file.write_text(json.dumps(to_dict(config)))
    words = ["-m", "jala_ray", "posttrain", str(file), "--local"]
    with Command.start(words, more, folder / f"{config.name}.log") as command:
        command.wait()
    return command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody killed, and one that died twice."""
    place = tmp_path_factory.mktemp("killed")
    points = write_points(place / "points")
    every: dict[str, Any] = BETWEEN | {"train__log_every": 1, "train__steps": STEPS, "train__micro_batch": 3}
    every |= {"train__evaluate": (("action_error", 4),), "train__average": 0.9}
    for name, kills in (("unbroken", ()), ("killed", KILLS)):
        config = settings(place / "runs", points, name, **every)
        for kill in kills:
            died = posttrained(config, place, kill)
            assert died.rc == -signal.SIGKILL, died.output
            assert max(row["step"] for row in rows(str(place / f"runs/{name}"))) in (kill - 1, kill)
        ended = posttrained(config, place)
        assert ended.rc == 0, ended.output
    return place


def test_losses_and_rows_are_the_unbroken_run_s(folder: Path) -> None:
    one, other = (rows(str(folder / "runs" / name)) for name in ("unbroken", "killed"))
    assert [row["step"] for row in one] == [row["step"] for row in other] == list(range(1, STEPS + 1))
    assert all(name in one[-1] for name in EXACT) and len({row["rows_digest"] for row in one}) == STEPS
    assert one == other, "with validation and the error of actions"
    assert one[-1]["eval/action_error/robot/model"] > 0 and one[-1]["quarantined"] == 0


def test_weights_and_averages_are_too(folder: Path) -> None:
    for file in ("model.safetensors", "average.safetensors"):
        one, other = (load_file(f"{history.newest(str(folder / 'runs' / n))}/{file}") for n in ("unbroken", "killed"))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one), file


def test_attempts_went_on_where_checkpoints_were(folder: Path) -> None:
    said = (folder / "killed.log").read_text()
    begun = [int(line.split("/")[0].removeprefix("step ")) for line in said.splitlines() if line.startswith("step ")]
    assert begun == [*range(1, 7), *range(5, 10), *range(9, 13)]
