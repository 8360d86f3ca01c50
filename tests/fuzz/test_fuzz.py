"""Damaged videos and manifests by the hundred: no crash, no hang, no hunger for memory, and only errors that users are meant to see."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import SHARED_DATA
from tests.fuzz.driver import BAD, Driver, Result
from tests.fuzz.ends import OK, TYPED
from tests.fuzz.mutations import KINDS, Cases
from tests.fuzz.report import table

QUICK = 20 * len(KINDS)
FULL = 210 * len(KINDS)


def run(bases: Path, folder: Path, cases: int, seed: int, shared: Path | None = None) -> list[Result]:
    settings: dict[str, object] = {"bases": str(bases), "seed": seed, "shared": str(shared) if shared else None}
    return list(Driver("tests.fuzz.worker", settings, folder / "work", folder / "found").run(range(cases)))


def check(results: list[Result]) -> None:
    bad = [result for result in results if result.outcome in BAD]
    assert not bad, "\n\n".join(f"{KINDS[r.case % len(KINDS)]}, case {r.case}: {r.outcome} {r.detail}" for r in bad[:5])
    ends = Counter((KINDS[result.case % len(KINDS)][0], result.outcome) for result in results)
    for target in ("video", "manifest"):  # the damage is neither harmless nor so great that all ends at once
        share = ends[target, TYPED] / (ends[target, TYPED] + ends[target, OK])
        assert 0.5 < share < 0.95, (target, share, table(results))


@pytest.mark.slow  # hangs are told by the clock, which a busy machine makes wrong
def test_damage_ends_in_errors_that_are_meant_to_be_seen(bases: Path, tmp_path: Path) -> None:
    check(run(bases, tmp_path, QUICK, seed=0))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_damaged_files(bases: Path, tmp_path: Path) -> None:
    assert FULL >= 6000
    check(run(bases, tmp_path, FULL, seed=1, shared=SHARED_DATA if SHARED_DATA.is_dir() else None))


def test_the_same_seed_makes_the_same_bytes(bases: Path) -> None:
    first, again, other = Cases(bases, 5), Cases(bases, 5), Cases(bases, 6)
    numbers = range(2 * len(KINDS))
    assert [first.case(number).files for number in numbers] == [again.case(number).files for number in numbers]
    same = sum(first.case(number).files == other.case(number).files for number in numbers)
    assert same < len(numbers) // 4


def test_most_cases_are_damaged(bases: Path) -> None:
    cases = Cases(bases, 0)
    made = [cases.case(number) for number in range(10 * len(KINDS))]
    changed = [case.files[case.base] != case.sound for case in made if case.target == "video"]
    assert sum(changed) > 0.9 * len(changed)
    assert len({tuple(case.files.values()) for case in made if case.target == "manifest"}) > 0.8 * 10 * 12
