"""`python -m tests.fuzz --cases 6000 --seed 0`: damaged videos and manifests, and a table of how they ended."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import SHARED_DATA
from tests.fuzz.bases import make_bases
from tests.fuzz.driver import BAD, Driver, Limits
from tests.fuzz.mutations import Cases
from tests.fuzz.report import table
from tests.fuzz.target import outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="run this one case here, in this process, and print every step")
    parser.add_argument("--found", type=Path, default=Path("fuzz_found"), help="folder for the files of bad cases")
    parser.add_argument("--made-only", action="store_true", help="leave real videos out")
    arguments = parser.parse_args()
    shared = SHARED_DATA if SHARED_DATA.is_dir() and not arguments.made_only else None
    with tempfile.TemporaryDirectory() as folder:
        bases = Path(folder) / "bases"
        make_bases(bases)
        if arguments.only is not None:
            return _one(Cases(bases, arguments.seed, shared), arguments.only, arguments.found)
        settings = {"bases": str(bases), "seed": arguments.seed, "shared": str(shared) if shared else None}
        driver = Driver("tests.fuzz.worker", settings, Path(folder) / "work", arguments.found, Limits())
        results, began = [], time.monotonic()
        for result in driver.run(range(arguments.first, arguments.first + arguments.cases)):
            results.append(result)
            if result.outcome in BAD:
                print(f"case {result.case}: {result.outcome} {result.detail}", file=sys.stderr, flush=True)
            elif len(results) % 500 == 0:
                print(f"{len(results)} cases, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(table(results))
    print(f"{len(results)} cases of seed {arguments.seed} in {time.monotonic() - began:.0f} s")
    return any(result.outcome in BAD for result in results)


def _one(cases: Cases, number: int, found: Path) -> int:
    case, place = cases.case(number), found / f"{number:06d}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "v.mp4").write_bytes((cases.folder / "manifest" / "v.mp4").read_bytes())
    print(f"{case.target}, {case.kind}, made from {case.base}; its files lie in {place}", flush=True)
    ended = list(map(_shown, outcomes(case, place)))
    return any(outcome in BAD for outcome in ended)


def _shown(outcome: tuple[str, str, str]) -> str:
    step, end, detail = outcome
    print(f"{step}: {end} {detail}", flush=True)
    return end


if __name__ == "__main__":
    sys.exit(main())
