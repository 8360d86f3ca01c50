"""How far the preparation of videos has come: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from jala_ray.data.prepare.job import Piece

LINE_SHARE = 0.05
"""Where nobody watches, a line is printed whenever so much more of the work is done."""


class Meter:
    """What has been done of some pieces, how fast, and how long the rest will take."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.total, self.count, self.began = sum(piece.weight for piece in pieces), len(pieces), time.monotonic()
        self.done = self.seconds = 0.0
        self.pieces = self.clips = self.rejected = self.bytes = 0
        self.failed: list[str] = []
        self.notes: list[str] = []

    def add(self, facts: dict[str, Any]) -> None:
        self.pieces += 1
        self.done += facts["weight"]
        self.seconds += facts["seconds"]
        self.clips += facts["clips"]
        self.rejected += facts["rejected"]
        self.bytes += facts["bytes"]
        self.notes += facts["notes"]
        if facts["error"]:
            self.failed.append(facts["error"])

    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def line(self) -> str:
        rate = self.seconds / max(self.elapsed(), 1e-3)
        left = clock(self.elapsed() * (self.total / self.done - 1)) if self.done else "-:--"
        counts = f"{self.pieces}/{self.count}, {self.clips} clips, {self.rejected} set aside"
        return f"{counts} | {rate:.1f} x real time | ETA {left}"


def clock(seconds: float) -> str:
    """h:mm:ss, without hours m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def follow(results: Iterable[dict[str, Any]], meter: Meter) -> None:
    """Count the results as they come, with a bar in a terminal and now and then a line elsewhere."""
    columns = (BarColumn(8), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, disable=not sys.stdout.isatty()) as bar:
        task, said = bar.add_task(meter.line(), total=meter.total), 0.0
        for facts in results:
            meter.add(facts)
            if facts["error"]:
                print(f"failed: {facts['video']}: {facts['error']}", file=sys.stderr, flush=True)
            bar.update(task, completed=meter.done, description=meter.line())
            if bar.disable and (meter.pieces == meter.count or meter.done - said >= LINE_SHARE * meter.total):
                print(f"{meter.done / meter.total:4.0%} | {meter.line()} | {clock(meter.elapsed())}", flush=True)
                said = meter.done
