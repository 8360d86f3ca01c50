"""One tree's part, in a process of its own: `python -m golden.in_tree world | inputs | runs ...`, with the tree first on PYTHONPATH.

The same file runs in both trees, so it takes the project's commands and as few names as it can. Where a later tree calls something
otherwise, it is here and in `inputs.py` that both names are tried.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .batches import columns
from .inputs import CACHES, arguments, make_all, make_tokenizer, make_world
from .recording import recording
from .runs import RUNS, SHARED, GoldenRun

TIMES = (
    *("time_s", "step_s", "data_wait", "samples_per_s", "chunks_per_s", "tokens_per_s", "started", "attempt", "world"),
    *("tflops_per_s", "mfu", "memory_gb", "rank_balance", "straggler", "goodput"),
    *("save_wait_s", "save_wait", "save_s", "save_gb"),
    *(f"step_s/{part}" for part in ("data", "copy", "forward", "backward", "optimizer", "other")),
)
"""Of a metrics row: what no two runs have in common, and what a step cost, which older trees don't tell."""
REASONED = ("clip_id", "step", "epoch", "plan_row", "field", "split")
"""Of a quarantined row: all but the words of its reason."""


def rows(file: Path, leave_out: tuple[str, ...] = (), keep: tuple[str, ...] | None = None) -> Iterator[dict[str, Any]]:
    for line in file.read_text().splitlines() if file.exists() else []:
        yield {k: v for k, v in json.loads(line).items() if k not in leave_out and (keep is None or k in keep)}


def run(golden: GoldenRun, places: dict[str, str], record: Path) -> None:
    """Train as the command does, and record."""
    words = [word.format(**places) for word in (*SHARED, *golden.settings)]
    folder, said = Path(places["runs"]) / golden.name, io.StringIO()
    samples = os.environ.get("GOLDEN_SAMPLES") == "1"
    with recording(record, partial(columns, reads=golden.reads, samples=samples)) as kept:
        with contextlib.redirect_stdout(said), arguments("local", golden.preset, "--name", golden.name, *words):
            try:
                runpy.run_module("jala_ray.training.local", run_name="__main__")
            except SystemExit as end:  # commands end with a status, 0 where all went well
                if end.code:
                    raise
        for row in rows(folder / "metrics.jsonl", leave_out=TIMES):
            kept.add(f"metrics/step {row['step']:04d}", row)
        for number, row in enumerate(rows(folder / "errors.jsonl", keep=REASONED)):
            kept.add(f"errors/{number}", row)


def main(what: str, tree: Path, shared: Path, own: Path) -> None:
    """`shared`: the folder of what the base made for both; `own`: this tree's, for what it makes and records."""
    import jala_ray

    if not Path(jala_ray.__file__).is_relative_to(tree):
        raise RuntimeError(f"jala_ray was imported from {jala_ray.__file__}, not from {tree}")
    torch.set_num_threads(1)
    world, tokenizer = shared / "world", shared / "tokenizer"
    if what == "world":
        make_world(world)
        make_tokenizer(world, tokenizer)
        return
    if what == "inputs":
        make_all(world, tokenizer, own / "inputs", own / "records" / "inputs")
        return
    places = {"world": world, "tokenizer": tokenizer, "runs": own / "runs"}
    places |= {name: own / "inputs" / name for name in CACHES}
    for golden in RUNS:
        began, record = time.perf_counter(), own / "records" / golden.name
        try:
            run(golden, {name: str(place) for name, place in places.items()}, record)
        except (Exception, SystemExit):  # it is in the record
            traceback.print_exc()
        print(f"{golden.name}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(sys.argv[1], *map(Path, sys.argv[2:5]))
