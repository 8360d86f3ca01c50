"""Ray's part in work of many pieces (`jala prepare`, caches, evaluations): pieces that need no work, as `work_through` spreads them.

`python benchmarks/pieces.py [--pieces 1000 4000 16000]`, on a head of its own with two CPUs. A piece is a video and 32 rows of a manifest.
The baseline is what is written first: Ray's range, with a read task a piece, and one list of all pieces in the store, which every task
unpickles whole. JSON: {"pieces": [...], "piece by piece": [...], "work_through": [...], "ratio": [...]}, seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.form import report
from jala_ray.data.prepare.job import SPANS_A_PIECE, VideoPiece
from jala_ray.training.local_head import local_head

Side = Callable[[Sequence[VideoPiece]], Iterator[dict[str, Any]]]


def pieces(count: int) -> list[VideoPiece]:
    first = range(0, count * SPANS_A_PIECE, SPANS_A_PIECE)
    return [
        VideoPiece(f"{i:016x}", f"s3://bucket/videos/{i:08d}.mp4", 100.0, tuple(range(at, at + SPANS_A_PIECE)))
        for i, at in enumerate(first)
    ]


def nothing(piece: VideoPiece) -> dict[str, Any]:
    return {"part": piece.name}


def piece_by_piece(items: Sequence[VideoPiece]) -> Iterator[dict[str, Any]]:
    """The baseline."""
    import ray

    stored = ray.put(list(items))

    def stage(batch: Any) -> Any:
        return {"result": [json.dumps(nothing(ray.get(stored)[int(i)])) for i in batch["id"]]}

    dataset = ray.data.range(len(items), override_num_blocks=len(items)).map_batches(stage, batch_size=1, num_cpus=1)
    dataset.context.enable_progress_bars = False
    for row in dataset.iter_rows():
        yield json.loads(row["result"])


def seconds(side: Side, items: Sequence[VideoPiece]) -> float:
    began = time.perf_counter()
    found = {facts["part"] for facts in side(items)}
    assert found == {piece.name for piece in items}
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pieces", type=int, nargs="+", default=[1000, 4000, 16000])
    options = parser.parse_args()
    with contextlib.ExitStack() as running:
        head = running.enter_context(local_head(2))
        os.environ |= head.environment  # a process reads its token when it imports Ray
        import ray

        from jala_ray.data.pipeline import work_through

        ray.init(head.gcs, logging_level=logging.ERROR, log_to_driver=False)
        running.callback(ray.shutdown)
        sides: dict[str, Side] = {
            "piece by piece": piece_by_piece,
            "work_through": lambda items: work_through(items, nothing),
        }
        for side in sides.values():
            seconds(side, pieces(64))  # processes and imports
        found = {name: [seconds(side, pieces(n)) for n in options.pieces] for name, side in sides.items()}
    ratio = [before / now for before, now in zip(*found.values(), strict=True)]
    rows = [(n, *(f"{s[i]:.1f}" for s in found.values()), f"{ratio[i]:.1f}") for i, n in enumerate(options.pieces)]
    figures = {"pieces": options.pieces, **{k: [round(s, 2) for s in v] for k, v in found.items()}}
    figures["ratio"] = [round(r, 2) for r in ratio]
    report("Pieces that need no work, seconds", ("pieces", *sides, "times as fast"), rows, figures)


if __name__ == "__main__":
    main()
