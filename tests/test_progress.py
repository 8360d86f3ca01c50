"""The one line of long jobs: counts, rate, time left."""

from __future__ import annotations

import pytest

from jala_ray import progress
from jala_ray.progress import Meter


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress.time, "monotonic", found)
    return found


def test_a_line_has_counts_rate_and_time_left(clock: Clock) -> None:
    meter = Meter(40, "parts")
    assert meter.line() == "0/40 parts | 0 parts/s | ETA -:--"
    clock.now += 20
    meter.advance(rows=300, left_out=2)
    meter.advance(9, rows=100, left_out=0)
    assert meter.line() == "10/40 parts | 400 rows, 2 left out | 20 rows/s | ETA 1:00"
    clock.now += 3580
    assert meter.left() == "3:00:00"


def test_lines_come_now_and_then_and_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter(200, "parts")
    clock.now += 50  # until the work begins
    with progress.told(meter) as tell:
        for _ in range(200):
            clock.now += 1
            meter.add({"part": "x", "rows": 2, "error": ""})
            tell()
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 20
        and lines[0].startswith("  5% | 10/200 parts | 20 rows | 2 rows/s")
        and lines[-1].startswith("100% | 200/200 parts")
    )


def test_items_are_told_only_to_who_wants_it(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.each([1, 2, 3], "files")) == [1, 2, 3]
    assert capsys.readouterr().out == ""
    with progress.shown():
        for item in progress.each([1, 2, 3], "files"):
            clock.now += 10
            assert f"{item}/3" not in capsys.readouterr().out, "an item counts when its work is done"
    assert capsys.readouterr().out.startswith("100% | 3/3 files | 0.1 files/s | ETA 0:00")
    list(progress.each([1, 2], "files"))
    assert capsys.readouterr().out == ""
