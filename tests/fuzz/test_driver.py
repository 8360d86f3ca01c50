"""The driver sees what ends badly, goes on with the next case, and names the culprit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.driver import CRASH, HANG, MEMORY, Driver, Limits
from tests.fuzz.ends import OK, TYPED, UNTYPED
from tests.fuzz.planted import CASES

pytestmark = pytest.mark.slow  # it tells hangs by the clock, which a busy machine makes wrong

LIMITS = Limits(cpu_s=1.0, wall_s=3.0, resident_bytes=64 << 20, address_bytes=2 << 30)


def driver(folder: Path) -> Driver:
    return Driver("tests.fuzz.planted", {}, folder / "work", folder / "found", LIMITS)


def named(*names: str) -> list[int]:
    return [next(i for i, case in enumerate(CASES) if case.__name__ == name) for name in names]


def test_every_bad_end_is_seen_and_the_next_case_runs(tmp_path: Path) -> None:
    expected = {
        "<lambda>": (OK, ""),
        "typed": (TYPED, "VideoError"),
        "untyped": (UNTYPED, "ZeroDivisionError"),
        "crash": (CRASH, "SIGSEGV"),
        "spin": (HANG, "in spin"),
        "fill": (MEMORY, "MiB"),
        "wait": (HANG, "in wait"),
        "ask_for_100_gb": (UNTYPED, "MemoryError"),
    }
    numbers = [number for name in expected for number in (0, *named(name))]
    results = list(driver(tmp_path).run(numbers))
    assert [result.outcome for result in results[::2]] == [OK] * len(expected)
    for (name, (outcome, detail)), result in zip(expected.items(), results[1::2], strict=True):
        assert (name, result.outcome) == (name, outcome) and detail in result.detail, result
    for number in named("crash"):
        assert f"CRASH, cases [{number}]" in (tmp_path / "found" / f"{number:06d}" / "report.txt").read_text()


def test_a_crash_that_needs_earlier_cases_is_traced_to_them(tmp_path: Path) -> None:
    arm, crash = named("arm", "crash_if_armed")
    results = list(driver(tmp_path).run([0, arm, 0, 1, crash, 0]))
    assert [result.outcome for result in results] == [OK, OK, OK, TYPED, CRASH, OK]
    report = (tmp_path / "found" / f"{crash:06d}" / "report.txt").read_text()
    assert f"CRASH, cases [{arm}, 0, 1, {crash}]" in report
