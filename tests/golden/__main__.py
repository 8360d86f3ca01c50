"""`make golden`: twenty steps of six runs in a named commit and in this checkout, equal bit for bit but for what is listed as intended."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.golden.compare import Difference, differences, judged, read_intended
from tests.golden.runs import RUNS
from tests.golden.trees import BASE, HERE, Tree, both

INTENDED = HERE / "intended.json"
RECORDS = ("inputs", *(run.name for run in RUNS))
SHOWN = 5
"""Differences of a run that are printed; the first is where to look."""


def compute(base: Tree, head: Tree, shared: Path) -> None:
    """The records of both trees, over the world and the tokenizer that the base makes in `shared`."""
    base.run("in_tree", "world", base.root, shared, base.own)
    for what in ("inputs", "runs"):
        with head.running("in_tree", what, head.root, shared, head.own):
            base.run("in_tree", what, base.root, shared, base.own)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--base", default=BASE.read_text().strip(), help="commit to be held against")
    parser.add_argument("--keep", type=Path, help="a new folder for records and logs, which are deleted otherwise")
    parser.add_argument(
        "--samples", action="store_true", help="compare micro-batches sample by sample, wherever each lies in its row"
    )
    given = parser.parse_args(words)
    os.environ["GOLDEN_SAMPLES"] = str(int(given.samples))
    intended, unmeant, began = read_intended(INTENDED), list[Difference](), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
        folder = given.keep.absolute() if given.keep else Path(scratch)
        with both(given.base, folder) as (base, head):
            print(f"{base.name} beside {head.name}, uncommitted changes included", flush=True)
            compute(base, head, folder / "shared")
        for run in RECORDS:
            pair = differences(run, base.own / "records" / run, head.own / "records" / run)
            found, meant = judged(pair, intended)
            print(
                f"{run}: {len(found)} differences" + (f", {meant} intended ones" if meant else "")
                if found or meant
                else f"{run}: equal"
            )
            for difference in found[:SHOWN]:
                print(f"  {difference}")
            unmeant += found
    for entry in intended:
        if not entry.met:
            print(f"intended.json: nothing differs at {entry.where} ({entry.reason}): take it out")
    print(f"{time.monotonic() - began:.0f} s")
    if unmeant:
        print(f"FAILED, first at {unmeant[0]}\nA change that is meant goes into {INTENDED.name} with its reason.")
    return 1 if unmeant else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
