"""`make golden-speed`: the data engine of this checkout beside a named commit's, in turns. Median below 0.95 of the commit's: it fails."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.golden.trees import BASE, both

LEAST = 0.95
SIDES = ("base", "head")

Rates = Mapping[str, Sequence[Mapping[str, float]]]
"""By side, a turn after the other: rates (more is better) by what was measured."""


def ratios(rates: Rates) -> dict[str, float]:
    """This checkout's median over the base's, by what was measured."""
    names = list(rates["base"][0])
    middle = {side: {name: statistics.median(turn[name] for turn in rates[side]) for name in names} for side in SIDES}
    return {name: middle["head"][name] / middle["base"][name] for name in names}


def measured(commit: str, turns: int) -> Rates:
    """Turn by turn, the other tree first in every second one, so that a slow hour meets both alike."""
    rates: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch, both(commit, Path(scratch)) as pair:
        trees, shared = dict(zip(SIDES, pair, strict=True)), Path(scratch) / "speed"
        trees["base"].run("measured", "inputs", shared)
        for turn in range(turns):
            for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                out = trees[side].own / "turn.json"
                trees[side].run("measured", "turn", shared, out)
                rates[side].append(json.loads(out.read_text()))
                said = ", ".join(f"{name} {rate:.4g}" for name, rate in rates[side][-1].items())
                print(f"turn {turn + 1} of {turns}, {trees[side].name}: {said}", flush=True)
    return rates


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden.speed", description=__doc__)
    parser.add_argument("--base", default=BASE.read_text().strip(), help="commit to be held against")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args(words)
    found = ratios(measured(given.base, given.turns))
    for name, ratio in found.items():
        print(f"{name}: {ratio:.3f} of the base's rate{'' if ratio >= LEAST else f', less than {LEAST}'}")
    return 1 if min(found.values()) < LEAST else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
