"""What the trainer promises, of every task: exact resume, one row a logged step, checkpoints that are kept, told and sound."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jala_ray.parsing import override
from jala_ray.training import history
from jala_ray.training.log import RunLog
from jala_ray.training.notice import Notice, StoppedByNotice
from jala_ray.training.task import NEWEST, TrainingTask
from jala_ray.training.trainer import ErrorBudget, train
from jala_ray.types import UserError
from tests.training import tokenizer_ranks
from tests.training.run import make_run, run_config
from tests.training.test_loop import TIMES, rows

Made = Callable[..., TrainingTask[Any, Any]]


def pretraining(root: Path, **settings: Any) -> TrainingTask[Any, Any]:
    """Of 6 steps; checkpoints after 3 and 6."""
    config = run_config(root, train__steps=6, train__checkpoint_every=3, train__keep=1)
    return make_run(override(config, {f"train.{key}": value for key, value in settings.items() if key != "lr"}))


def tokenizer(root: Path, **settings: Any) -> TrainingTask[Any, Any]:
    """The same."""
    run = tokenizer_ranks.make_run(root)
    return replace(run, config=override(run.config, {f"train.{key}": value for key, value in settings.items()}))


tasks = pytest.mark.parametrize("made", [pretraining, tokenizer])


class CutOffError(Exception):
    """Stands for a kill."""


@tasks
def test_a_run_cut_off_after_a_checkpoint_ends_as_the_unbroken_one(tmp_path: Path, made: Made) -> None:
    straight = made(tmp_path / "a")
    told: list[tuple[int, str]] = []
    straight.committed = lambda row, address: told.append((row["step"], address))
    train(straight)
    assert told == [(step, history.address(straight.folder, step)) for step in (3, 6)]
    assert [history.step_of(uri) for uri in history.committed_steps(straight.folder)] == [6], "keep = 1"

    def cut_off(row: dict[str, Any], address: str) -> None:
        raise CutOffError

    cut = made(tmp_path / "b")
    cut.committed = cut_off
    with pytest.raises(CutOffError):
        train(cut)
    again = made(tmp_path / "b")
    again.resume_from = NEWEST
    train(again)
    assert plain(again) == plain(straight) and [row["step"] for row in rows(again.folder)] == list(range(1, 7))
    for name, value in straight.learner.state_dict().items():
        assert torch.equal(value, again.learner.state_dict()[name]), name


def plain(task: TrainingTask[Any, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows(task.folder)]


@tasks
def test_a_notice_is_answered_with_a_checkpoint_and_no_step_is_done_twice(
    tmp_path: Path, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between two checkpoints; the run begun again ends as the unbroken one, and nobody asks at the last step."""
    straight = made(tmp_path / "a")
    train(straight)
    asked = list[int]()

    def noticed() -> Notice | None:
        asked.append(len(rows(told.folder)) + 1)
        return Notice("a node is taken away", time.time() + 60) if asked[-1] == 2 else None

    told = replace(made(tmp_path / "b"), noticed=noticed)
    with pytest.raises(StoppedByNotice, match="stopped after step 2: a node is taken away"):
        train(told)
    assert [history.step_of(uri) for uri in history.committed_steps(told.folder)] == [2]
    again = replace(made(tmp_path / "b"), noticed=lambda: asked.append(0))
    train(again)
    assert asked == [1, 2, 0, 0, 0]
    found = plain(again)
    assert found[1].pop("notice") == "a node is taken away" and 50 < found[1].pop("notice_left_s") <= 60
    expected = plain(straight)
    left_out = [key for key in expected[1] if key not in found[1]]  # there was no time to evaluate
    assert all(key.startswith(("val/", "monitor/", "eval/")) for key in left_out)
    expected[1] = {key: value for key, value in expected[1].items() if key not in left_out}
    assert found == expected and not (Path(told.folder) / "metrics.cut.jsonl").exists()
    assert "NOTICE step 2: a node is taken away (60 s left)" in capsys.readouterr().out
    for name, value in straight.learner.state_dict().items():
        assert torch.equal(value, again.learner.state_dict()[name]), name


def test_another_number_of_workers_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tokenizer(tmp_path)
    train(run)
    lines = Path(run.folder, "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["world"] for line in lines] == [1] * len(lines)
    with RunLog(run.config, run.folder, 4, 6, None) as log:
        log.begun(1)
        assert "workers" not in capsys.readouterr().out
        log.begun(3)
        assert "1 -> 3 workers from step 4 on, attempt 2" in capsys.readouterr().out


@tasks
def test_a_checkpoint_has_a_row_and_so_has_the_end(tmp_path: Path, made: Made) -> None:
    task = made(
        tmp_path,
        log_every=4,
        **({"validate_every": 9, "monitor_every": 9} if made is pretraining else {"eval_every": 9}),
    )
    train(task)
    assert [row["step"] for row in rows(task.folder)] == [3, 4, 6]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows(task.folder))


@tasks
def test_other_ranks_write_nothing(tmp_path: Path, made: Made) -> None:
    task = made(tmp_path)
    task.rank = 1
    told: list[str] = []
    task.committed = lambda row, address: told.append(address)
    train(task)
    assert len(told) == 2 and not Path(task.folder).exists()


def test_the_budget_of_errors_is_over_the_last_hundred_rows() -> None:
    budget = ErrorBudget(("data.max_error_share", 0.1, 50))
    for _ in range(100):
        budget.check({"quarantined": 0, "rows": 10})
    budget.check({"quarantined": 10, "rows": 10})
    budget.check({"quarantined": 90, "rows": 90})  # 100 of 1080
    with pytest.raises(UserError, match=r"data\.max_error_share = 10\.0% of"):
        budget.check({"quarantined": 10, "rows": 10})
    ErrorBudget(None).check({})
