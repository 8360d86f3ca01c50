"""Search and halving as functions of the ledger, without Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from jala_ray.sweeps.driver import LedgerScheduler
from jala_ray.sweeps.halving import Halving
from jala_ray.sweeps.ledger import Ledger, Record
from jala_ray.sweeps.metrics import METRICS
from jala_ray.sweeps.search import Method, Strategy, pareto, propose
from jala_ray.types import ConfigError
from tests.sweeps.formula import EVERY, GOOD_RADIUS, METRIC, SPACE, STEPS, Bowl, best_place, bowl_sweep


def played(seed: int, method: Method, trials: int = 25, wave: int = 2) -> list[Record]:
    """A sweep of whole trials in waves."""
    bowl, strategy, records = Bowl(best_place(seed)), Strategy(method, seed, trials), list[Record]()
    for number in range(trials):
        start = number - number % wave
        history = records[:start] + [dataclasses.replace(r, state="open") for r in records[start:]]
        values = propose(strategy, number, SPACE, history, (METRIC,), METRIC)
        records.append(Record(number, values, "done", [bowl.row(values, STEPS) | {"order": number}]))
    return records


def hits(seed: int, method: Method) -> bool:
    bowl = Bowl(best_place(seed))
    return any(bowl.distance(record.values) <= GOOD_RADIUS for record in played(seed, method))


def test_the_good_region_is_two_percent_of_the_volume() -> None:
    draws = np.random.default_rng(0).random((200_000, len(SPACE)))
    inside = np.linalg.norm(draws - np.array(best_place(3)), axis=1) <= GOOD_RADIUS
    assert inside.mean() == pytest.approx(0.02, abs=0.001)


def test_the_default_search_finds_it_where_random_search_does_not() -> None:
    assert sum(hits(seed, "tpe") for seed in range(10)) >= 9
    assert sum(hits(seed, "random") for seed in range(10)) <= 7


def test_a_suggestion_depends_on_the_ledger_alone() -> None:
    records, strategy = played(1, "tpe", trials=12), Strategy("tpe", 1, 25)
    twice = [propose(strategy, 12, SPACE, records, (METRIC,), METRIC) for _ in range(2)]
    assert twice[0] == twice[1]
    assert propose(Strategy("tpe", 2, 25), 12, SPACE, records, (METRIC,), METRIC) != twice[0]
    better = [dataclasses.replace(r, rows=[r.rows[0] | {"val/lab/loss_mcp": -float(r.number)}]) for r in records]
    assert propose(strategy, 12, SPACE, better, (METRIC,), METRIC) != twice[0]


def test_trials_that_were_stopped_or_failed_are_told_too() -> None:
    records = played(1, "tpe", trials=12)
    for number, state in ((3, "stopped"), (4, "failed"), (5, "open")):
        records[number] = dataclasses.replace(records[number], state=state)
    propose(Strategy("tpe", 1, 25), 12, SPACE, records, (METRIC,), METRIC)
    pair = (METRICS["mpjpe"], METRICS["probe_h"])
    measured = [
        dataclasses.replace(r, final={"mpjpe_lab": 1.0 + r.number, "probe_h_lab": 0.1 * r.number}) for r in records
    ]
    propose(Strategy("tpe", 1, 25), 12, SPACE, measured, pair, None)


def test_a_pareto_front() -> None:
    pair = (METRICS["mpjpe"], METRICS["probe_h"])
    scores = [(5.0, 0.5), (4.0, 0.4), (6.0, 0.4), (3.0, 0.1), (5.0, 0.6)]
    records = [Record(n, {}, "done", final={"mpjpe_lab": a, "probe_h_lab": b}) for n, (a, b) in enumerate(scores)]
    records.append(Record(9, {}, "stopped", final={"mpjpe_lab": 0.0, "probe_h_lab": 9.0}))
    assert [r.number for r in pareto(records, pair)] == [1, 3, 4]
    assert [r.number for r in pareto(records, pair[:1])] == [3]
    assert pareto([Record(0, {}, "failed")], pair[:1]) == []


# --- halving ---------------------------------------------------------------------------------------------------------


def test_decisions_are_those_of_rays_asha() -> None:
    rule = Halving(METRIC, EVERY, STEPS)
    theirs = AsyncHyperBandScheduler("step", "error", "min", max_t=STEPS, grace_period=EVERY, reduction_factor=3)
    rng = np.random.default_rng(0)
    records = [Record(n, {}) for n in range(30)]
    for record in records:
        theirs.on_trial_add(None, SimpleNamespace(trial_id=str(record.number)))  # type: ignore[arg-type]
    order, alive, stopped = 0, list(records), 0
    while alive:
        record = alive[rng.integers(len(alive))]
        value = float(rng.random())
        record.rows.append({"step": record.step + EVERY, "val/lab/loss_mcp": value, "order": order})
        order += 1
        trial, result = SimpleNamespace(trial_id=str(record.number)), {"step": record.step, "error": value}
        wanted = theirs.on_trial_result(None, trial, result)  # type: ignore[arg-type]
        if record.step == STEPS:
            alive.remove(record)
            continue
        ours = rule.stops(record, [r for r in records if r is not record], waves=False)
        assert ours == (wanted == TrialScheduler.STOP), (record.number, record.step)
        if ours:
            alive.remove(record)
            stopped += 1
    assert 5 < stopped < 30


def test_in_waves_only_earlier_waves_count() -> None:
    rule = Halving(METRIC, 3, 27)
    good = Record(0, {}, "done", [{"step": 3, "val/lab/loss_mcp": 1.0, "order": 9}])
    late = Record(1, {}, "open", [{"step": 3, "val/lab/loss_mcp": 2.0, "order": 5}])
    assert rule.stops(late, [good], waves=True)  # whatever came when
    assert not rule.stops(late, [good], waves=False)
    assert not rule.stops(late, [], waves=True)


def test_a_rung_between_two_reports_is_judged_once() -> None:
    rule = Halving(METRIC, 4, 100)
    good = Record(0, {}, "done", [{"step": 10, "val/lab/loss_mcp": 1.0, "order": 0}])
    bad = Record(1, {}, "open", [{"step": 10, "val/lab/loss_mcp": 2.0, "order": 1}])
    assert rule.stops(bad, [good], waves=False)
    bad.rows.append({"step": 11, "val/lab/loss_mcp": 2.0, "order": 2})
    assert not rule.stops(bad, [good], waves=False)


def test_rungs_outside_a_trial_are_refused() -> None:
    for first, last, factor in ((0, 9, 3), (9, 9, 3), (1, 9, 1)):
        with pytest.raises(ConfigError):
            Halving(METRIC, first, last, factor)


def test_a_decision_that_a_killed_driver_did_not_take_is_taken_later(tmp_path: Path) -> None:
    sweep = bowl_sweep(tmp_path, lambda *_: None, count=2, concurrent=1)
    ledger, said = Ledger(str(tmp_path)), list[str]()
    for number, value in ((0, 1.0), (1, 2.0)):
        ledger.add(number, {"weight": 1.0})
        ledger.report(number, {"step": EVERY, "val/lab/loss_mcp": value})
    ledger.end(0, "done")
    trial, row = SimpleNamespace(config={"number": 1}), {"step": EVERY, "val/lab/loss_mcp": 2.0}
    scheduler = LedgerScheduler(sweep, ledger, said.append)
    assert scheduler.on_trial_result(None, trial, row) == TrialScheduler.STOP
    assert ledger.records[1].state == "stopped" and len(ledger.records[1].rows) == 1 and not said


# --- the ledger ------------------------------------------------------------------------------------------------------


def test_a_ledger_comes_back(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.add(0, {"a": 1})
    ledger.add(1, {"a": 2})
    assert ledger.report(0, {"step": 3, "x": 1.0}) == {"step": 3, "x": 1.0, "order": 0}
    assert ledger.report(1, {"step": 3, "x": 2.0}) == {"step": 3, "x": 2.0, "order": 1}
    assert ledger.report(1, {"step": 3, "x": 9.0}) is None
    ledger.end(0, "stopped")
    ledger.end(0, "done")
    again = Ledger(str(tmp_path))
    assert [r for r in again] == [r for r in ledger]
    assert again.records[0].state == "stopped" and not again.records[1].finished
    assert again.report(1, {"step": 6, "x": 2.0}) == {"step": 6, "x": 2.0, "order": 2}
    with pytest.raises(ConfigError, match="as it began"):
        again.add(1, {"a": 3})
    again.end(1, "failed", "why")
    assert Ledger(str(tmp_path)).reopen_failed() == [1]
    third = Ledger(str(tmp_path))
    assert not third.records[1].finished and third.records[1].reason is None and len(third.records[1].rows) == 2
    assert third.reopen_failed() == [] and third.records[0].state == "stopped"
