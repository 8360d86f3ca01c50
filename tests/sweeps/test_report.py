"""The page of a sweep, from a ledger that was played without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jala_ray.sweeps.driver import Sweep
from jala_ray.sweeps.ledger import Ledger
from jala_ray.sweeps.outcome import markdown, results
from jala_ray.sweeps.report import compared, trend, write_report
from jala_ray.sweeps.search import propose
from tests.reports.browser import open_browser
from tests.sweeps.formula import EVERY, SPACE, STEPS, Bowl, best_place, bowl_sweep


def played(folder: Path, count: int, failed: tuple[int, ...] = (3,)) -> tuple[Sweep, Ledger]:
    """One trial after another."""
    bowl, sweep = Bowl(best_place(2)), bowl_sweep(folder, lambda *_: None, count=count, concurrent=1)
    ledger = Ledger(str(folder))
    assert sweep.halving is not None
    for number in range(count):
        values = propose(sweep.strategy, number, SPACE, sweep.known_to(number, ledger), sweep.metrics, sweep.metrics[0])
        record = ledger.add(number, values)
        ledger.start(number)
        for step in range(EVERY, STEPS + 1, EVERY):
            ledger.report(number, bowl.row(values, step))
            if number in failed:
                ledger.end(number, "failed", "RuntimeError: <b>out</b> of | luck")
                break
            if sweep.halving.stops(record, sweep.known_to(number, ledger), waves=True):
                ledger.end(number, "stopped")
                break
        ledger.end(number, "done")
    return sweep, ledger


def test_the_table_has_every_trial_best_first(tmp_path: Path) -> None:
    sweep, ledger = played(tmp_path, 9)
    found = results(sweep, ledger)
    states = [row["state"] for row in found["trials"]]
    assert sorted(row["number"] for row in found["trials"]) == list(range(9))
    assert states == sorted(states, key=["done", "stopped", "failed"].index) and states.count("stopped") > 0
    done = [row["metrics"]["masked_loss"] for row in found["trials"] if row["state"] == "done"]
    assert done == sorted(done) and found["best"] == [found["trials"][0]["number"]]
    lines = markdown(found).splitlines()
    assert len(lines) == 11 and all(line.count(" | ") == lines[0].count(" | ") for line in (lines[0], *lines[2:]))
    assert "out</b> of / luck" in lines[-1]
    json.dumps(found, allow_nan=False)


def test_trials_are_compared_at_one_step(tmp_path: Path) -> None:
    found = results(*played(tmp_path, 9))
    numbers, label = compared(found)
    reached = {row["number"]: dict(row["curve"]) for row in found["trials"]}
    step = int(label.split(" at step ")[1].split(",")[0])
    assert len(numbers) >= 5 and numbers == {n: curve[step] for n, curve in reached.items() if step in curve}
    assert not any(
        len([1 for curve in reached.values() if later in curve]) >= 5 for later in range(step + 1, STEPS + 1)
    )


def test_a_trend_is_a_parabola() -> None:
    x = [0.0, 0.2, 0.5, 0.6, 1.0]
    found = trend(x, [(v - 0.4) ** 2 for v in x])
    assert found is not None and found[1] == pytest.approx([(v - 0.4) ** 2 for v in found[0]], abs=1e-9)
    assert trend(x[:4], x[:4]) is None and trend([0.5] * 6, [1.0] * 6) is None


def test_a_browser_shows_it_without_a_network(tmp_path: Path) -> None:
    sweep, ledger = played(tmp_path / "sweep", 12)
    page = tmp_path / "report.html"
    page.write_text(write_report(sweep.folder, results(sweep, ledger), sweep.domains))
    with open_browser(tmp_path) as browser:
        browser.open(page)
        browser.wait("document.documentElement.dataset.drawn === 'yes'")
        charts = browser.evaluate("[...document.querySelectorAll('.chart')].map(n => n.querySelectorAll('svg').length)")
        assert len(charts) == 3 + len(SPACE) and all(charts)  # parallel, curves, cost, one a setting
        assert browser.evaluate("document.querySelectorAll('#trials tbody tr').length") == 12
        assert browser.evaluate(
            "document.querySelectorAll('.parcoords').length > 0 || !!document.querySelector('.parcoords-line-layers')"
        )
        assert not browser.errors and {url.partition(":")[0] for url in browser.requests} <= {"file", "data", "blob"}
        assert "<b>out" not in page.read_text()
