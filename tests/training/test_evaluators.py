"""Evaluators: what they give, that they change and stop nothing, on any number of ranks and after a resume."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from jala_ray.commands.shell import main
from jala_ray.config.checking import check
from jala_ray.config.evaluators import EVALUATORS, Evaluator, evaluators_of, lines, means
from jala_ray.parsing import from_dict, parse, to_dict
from jala_ray.presets import TINY
from jala_ray.training import setup
from jala_ray.training.evaluating import Evaluations, Moment, undisturbed
from jala_ray.training.trainer import train
from jala_ray.types import ConfigError
from tests.support import small
from tests.training.own_figures import OWN, all_of_them, evaluated, one_of_two
from tests.training.run import make_run, run_config
from tests.training.test_loop import Killed, rows

KEYS = f"eval/{OWN}."


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights after four steps without evaluators."""
    run = make_run(run_config(tmp_path_factory.mktemp("plain"), train__validate_every=10, train__monitor_every=10))
    run.validation = {}
    train(run)
    return run.learner.state_dict()


def test_they_change_nothing_of_the_training(tmp_path: Path, plain: dict[str, Tensor]) -> None:
    config = evaluated(tmp_path, "disturbs", "held_out", "fails", every=1, train__validate_every=1)
    run = make_run(config)
    train(run)
    last = rows(run.folder)[-1]
    assert last[f"{KEYS}disturbs/grads"] > 10 and last["val/lab/loss_mcp"] > 0
    for name, value in run.learner.state_dict().items():
        assert torch.equal(value, plain[name]), name


def test_modes_draws_and_gradients_are_put_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[1].eval()
    modes = [module.training for module in model.modules()]
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    drawn = []
    for _ in range(2):
        with undisturbed(model, torch.device("cpu")):
            assert not model.training and not torch.is_grad_enabled()
            drawn.append((torch.rand(()).item(), random.random(), np.random.rand()))
            model.train()
            with torch.enable_grad():
                model(torch.ones(1, 2)).sum().backward()
    assert drawn[0] == drawn[1]
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()
    assert all(p.grad is None for p in model.parameters()) and torch.is_grad_enabled()


def test_they_fire_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    config = evaluated(tmp_path, "held_out", every=2, train__steps=5, train__validate_every=3, train__log_every=9)
    run = make_run(config)
    train(run)
    own, validated = (
        [row["step"] for row in rows(run.folder) if key in row]
        for key in (f"{KEYS}held_out/lab/loss", "val/lab/loss_mcp")
    )
    assert own == [2, 4, 5] and validated == [3, 5]
    assert rows(run.folder)[-1][f"{KEYS}held_out/lab/rows"] == 6


def test_after_a_resume_they_are_the_unbroken_run_s(tmp_path: Path) -> None:
    names = ("held_out", "disturbs", "fails")
    straight = make_run(evaluated(tmp_path / "a", *names, every=3, train__validate_every=3))
    train(straight)
    broken = make_run(evaluated(tmp_path / "b", *names, every=3, train__validate_every=3))
    whole = broken.shares

    def failing(first: int) -> Iterator[Any]:
        for i, share in enumerate(whole(first)):
            if i == 3:
                raise Killed
            yield share

    broken.shares = failing
    with pytest.raises(Killed):
        train(broken)
    train(make_run(broken.config))
    assert rows(broken.folder) == rows(straight.folder)
    assert any(f"{KEYS}disturbs/draw" in row for row in rows(broken.folder))


def test_one_that_fails_stops_nothing_and_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plain: dict[str, Tensor]
) -> None:
    run = make_run(evaluated(tmp_path, "fails", "words", "alone", "fails_on_one_rank", "held_out", every=1))
    train(run)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert [line.partition(" failed")[0] for line in said] == [
        f"WARNING step 1: the evaluation {OWN}:{name}" for name in ("fails", "words", "alone", "fails_on_one_rank")
    ]
    for step, row in enumerate(rows(run.folder), 1):
        assert row[f"{KEYS}fails/failed"] == f"ValueError: nothing to see at step {step}"
        assert row[f"{KEYS}words/failed"].startswith("ValueError: could not convert string")
        assert "gives (sum, count)" in row[f"{KEYS}alone/failed"]
        assert f"{KEYS}held_out/lab/loss" in row and row["loss"] > 0
    assert all(torch.equal(value, plain[name]) for name, value in run.learner.state_dict().items())


def test_two_ranks_have_the_figures_of_one(tmp_path: Path) -> None:
    """One that fails on one rank leaves the other waiting for nothing."""
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    one = make_run(all_of_them(tmp_path, "one"))
    train(one)
    for alone, together in zip(rows(one.folder), rows(str(tmp_path / "two")), strict=True):
        mine = {key for key in alone if key.startswith(("eval/", "val/"))}
        assert mine == {key for key in together if key.startswith(("eval/", "val/"))}
        for key in sorted(mine):
            if key.endswith("fails_on_one_rank/failed"):
                assert together[key] == "rank 1 of 2: ZeroDivisionError: on one rank"
            elif key.endswith("/rows") or isinstance(alone[key], str):
                assert together[key] == alone[key], key
            elif "monitor" not in key:  # of rank 0's first batch
                assert together[key] == pytest.approx(alone[key], abs=1e-4), key
    assert rows(one.folder)[-1][f"{KEYS}held_out/lab/rows"] == 6


# --- one more kind ---------------------------------------------------------------------------------------------------


class LossOfFirst(Evaluator):
    """As a file of its own would declare it: the learner over this rank's held-out rows, by domain."""

    def part(self, at: Moment) -> dict[str, tuple[float, float]]:
        found = {}
        for domain, batches in at.held_out.items():
            terms = [at.learner.run(at.on_device(batch))[2].terms["text"] for batch in batches]
            rows = sum(float(batch.weight.sum()) for batch in batches)
            found[f"{domain}/text"] = (sum(float(one.sum()) for one in terms), rows)
        return found

    def figures(self, parts: Sequence[dict[str, tuple[float, float]]]) -> dict[str, float | None]:
        return means(parts)


def test_a_registered_kind_is_one_that_a_run_may_name(tmp_path: Path) -> None:
    EVALUATORS.register("loss_of_first")(LossOfFirst)
    try:
        assert "loss_of_first: As a file" in lines()
        run = make_run(run_config(tmp_path, train__evaluate=(("loss_of_first", 2),), train__steps=2))
        run.config.check()
        train(run)
        assert rows(run.folder)[-1]["eval/loss_of_first/lab/text"] > 0
    finally:
        EVALUATORS.forget("loss_of_first")


class Unpackable(Evaluator):
    """Its part cannot travel to another rank, which must not end in a gathering that nobody leaves."""

    def part(self, at: Moment) -> object:
        return lambda: at

    def figures(self, parts: Sequence[object]) -> dict[str, float | None]:
        raise AssertionError("never asked")


def test_a_part_that_cannot_travel_is_a_failure() -> None:
    at = Moment(4, nn.Linear(1, 1), torch.device("cpu"), None)
    row = Evaluations([]).measure([Unpackable(TINY, "unpackable")], at)
    assert list(row) == ["eval/unpackable/failed"] and "pickle" in row["eval/unpackable/failed"]


# --- what is refused before a run starts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evaluate", "said"),
    [
        ((("generatoin", 5),), "train.evaluate: got 'generatoin'.*Did you mean generation"),
        ((("nowhere:f", 5),), "train.evaluate: got 'nowhere:f'.*No module named 'nowhere'"),
        (((f"{OWN}:absent", 5),), "train.evaluate: .*no attribute 'absent'"),
        (((f"{OWN}:no_function", 5),), "train.evaluate: .*expected a function. It is a int"),
        (((":f", 5),), "train.evaluate: got ':f', expected MODULE:FUNCTION"),
        (((f"{OWN}:fails", 0),), "a number of steps >= 1"),
        (((f"{OWN}:fails", 1), (f"{OWN}:fails", 2)), "every name once"),
        ((("validation_loss", 5),), "not every run has.*Set train.validate_every"),
        ((("function", 5),), "got 'function', expected MODULE:FUNCTION"),
    ],
)
def test_what_cannot_be_is_refused(evaluate: tuple[tuple[str, int], ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(small(train__evaluate=evaluate))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"data__manifest": "", "data__cache": "c"}, "a run with a manifest"),
        ({"train__generation_clips": 0}, "train.generation_clips"),
    ],
)
def test_generation_says_what_it_lacks(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(small(train__evaluate=(("generation", 5),), **values))


def test_generation_needs_an_objective_that_generates() -> None:
    from jala_ray.presets import PRESETS

    with pytest.raises(ConfigError, match=r"predicts no motion codes.*lapa_actions"):
        check(small(PRESETS["tiny_lapa_actions"], train__evaluate=(("generation", 5),)))


def test_the_command_line_and_older_configurations_are_read() -> None:
    config = parse(TINY, ["--train.evaluate", "generation", "500", f"{OWN}:fails", "100"])
    assert config.train.evaluate == (("generation", 500), (f"{OWN}:fails", 100))
    assert from_dict(type(config), to_dict(config)) == config
    older = to_dict(TINY)
    for key in ("evaluate", "generation_clips", "generation_passes"):
        del older["train"][key]
    assert from_dict(type(config), older) == TINY
    assert [(one.name, steps) for one, steps in evaluators_of(TINY)] == [("monitors", 20), ("validation_loss", 100)]


def test_they_may_change_between_the_attempts_of_a_run(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    folder, options = setup.run_folder(config), setup.storage_options(config)
    setup.write_config(config, folder, options)
    (Path(folder) / "metrics.jsonl").write_text('{"step": 1}\n')
    setup.write_config(evaluated(tmp_path, "fails"), folder, options)
    with pytest.raises(ConfigError, match=r"train\.validate_every"):
        setup.write_config(run_config(tmp_path, train__validate_every=7), folder, options)


def test_help_says_each_kind_s_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for line in lines().split("\n\n"):
        assert " ".join(line.split()) in said, line
    assert "generation: Motion of" in said and "MODULE:FUNCTION: A function" in said
