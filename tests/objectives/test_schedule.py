"""Schedules of the alignment weight lambda."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from jala_ray.config import AlignConfig, EmaConfig
from jala_ray.config.checking import check
from jala_ray.objectives.aligning import scheduled
from jala_ray.objectives.jala import Jala
from jala_ray.training import history
from jala_ray.training.learner import means
from jala_ray.training.trainer import train
from jala_ray.types import ConfigError
from tests.support import lay_out, make_assets, make_batch, make_learner, small
from tests.training.run import make_run, run_config
from tests.training.test_loop import rows


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [2.0, 2.0, 2.0, 2.0, 2.0]),
        ("warmup", [0.0, 1.0, 2.0, 2.0, 2.0]),
        ("decay", [2.0, 2.0, 2.0, 1.0, 0.0]),
    ],
)
def test_lambda_over_a_run(schedule: Literal["constant", "warmup", "decay"], expected: list[float]) -> None:
    align = AlignConfig(weight=2.0, schedule=schedule, schedule_share=0.5)
    assert [scheduled(align, progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(expected)


def test_the_step_s_loss_has_this_step_s_lambda() -> None:
    config = small(
        objective__align__schedule="warmup", objective__align__schedule_share=1.0, objective__align__weight=2.0
    )
    assets = make_assets(config)
    learner, batch = make_learner(config, assets), make_batch(lay_out(config, assets))
    found = {}
    for progress in (0.0, 0.25, 1.0):
        learner.objective.before_step(progress)
        found[progress] = learner(batch)
    align = found[1.0].sums["align/sum"]
    assert align > 0
    for progress, weight in ((0.25, 0.5), (1.0, 2.0)):
        more = (found[progress].loss - found[0.0].loss).double()
        torch.testing.assert_close(more, weight * align, rtol=1e-4, atol=1e-5)


def test_the_loop_says_where_it_is_after_a_resume_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[float] = []
    plain = Jala.before_step

    def heard(self: Jala, progress: float) -> None:
        said.append(progress)
        plain(self, progress)

    monkeypatch.setattr(Jala, "before_step", heard)
    values = {"objective__align__schedule": "decay", "objective__align__schedule_share": 1.0}
    first = make_run(run_config(tmp_path, **values))
    train(first)
    assert said == [0.0, 0.25, 0.5, 0.75]
    assert isinstance(first.learner.objective, Jala)
    assert first.learner.objective.weight == pytest.approx(0.25 * first.config.objective.align.weight)
    longer = make_run(run_config(tmp_path, **values, train__steps=8))
    assert longer.resume_from is not None and history.step_of(longer.resume_from) == 4
    said.clear()
    train(longer)
    assert said == [0.5, 0.625, 0.75, 0.875]


def test_the_logged_loss_has_each_step_s_lambda(tmp_path: Path) -> None:
    """A row over two steps has the mean of their losses over sequences, though lambda moved between them."""
    values = {"objective__align__schedule": "warmup", "objective__align__schedule_share": 1.0}
    logged = {}
    for every in (1, 2):
        run = make_run(run_config(tmp_path, name=f"every{every}", train__log_every=every, **values))
        train(run)
        logged[every] = rows(run.folder)
    single = {row["step"]: row for row in logged[1]}
    assert [row["step"] for row in logged[2]] == [2, 4] and len(single) == 4
    before = 0
    for row in logged[2]:
        steps = [single[row["step"] - 1], single[row["step"]]]
        counts = [steps[0]["samples"] - before, steps[1]["samples"] - steps[0]["samples"]]
        before = row["samples"]
        mean = sum(one["loss"] * count for one, count in zip(steps, counts, strict=True)) / sum(counts)
        assert row["loss"] == pytest.approx(mean, rel=1e-12)
        assert steps[1]["loss_align"] > 0


def test_what_is_logged_of_sums() -> None:
    """Names are the objective's: terms with their means, ratios as they are called."""
    sums = {"a/sum": 6.0, "a/count": 4.0, "b/sum": 0.0, "b/count": 0.0, "hit/part": 1.0, "hit/whole": 8.0, "loss": 3.0}
    assert means(sums) == {"loss_a": 1.5, "loss_b": None, "hit": 0.125}
    assert means({"hit/part": 0.0, "hit/whole": 0.0}, "lab/") == {"lab/hit": None}


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none(share: float) -> None:
    config = small(data__manifest="m", motion_tokenizer="t", objective__align__schedule_share=share)
    with pytest.raises(ConfigError, match=r"objective\.align\.schedule_share"):
        check(config)


def test_alpha_as_a_share_of_the_run() -> None:
    """The average remembers 1 / (1 - alpha) steps: the paper's 0.999 over 58.6 k steps is 1.7 % of the run."""
    assert EmaConfig(share=1000 / 58_600).over(58_600) == pytest.approx(0.999, rel=1e-12)
    assert EmaConfig(share=0.1).over(200) == pytest.approx(0.95)
    assert EmaConfig(share=0.1).over(5) == 0.0 and EmaConfig(alpha=0.7).over(5) == 0.7


def test_a_run_averages_by_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps, half of them remembered: alpha 0.5, also when the run is resumed; the rows say so."""
    seen: list[float] = []
    monkeypatch.setattr("jala_ray.objectives.jala.decoupled_ema", lambda lap, lsp, alpha: seen.append(alpha))
    values = {"objective__ema__share": 0.5, "train__monitor_every": 1}
    run = make_run(run_config(tmp_path, **values))
    train(run)
    assert seen == [0.5] * 4
    assert {row["monitor/ema_alpha"] for row in rows(run.folder) if "monitor/rho" in row} == {0.5}
    seen.clear()
    train(make_run(run_config(tmp_path, **values, train__steps=8)))
    assert seen == [0.75] * 4


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan"), 0.01])
def test_no_share_of_the_run(share: float) -> None:
    """0.01 of ten steps is less than one."""
    config = small(objective__ema__share=share, train__steps=10)
    with pytest.raises(ConfigError, match=r"objective\.ema\.share"):
        check(config)
