"""How far the preparation of videos has come, by their weight."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from jala_ray import progress
from jala_ray.data.prepare.job import Piece
from jala_ray.progress import clock

__all__ = ["Meter", "clock", "follow"]


class Meter(progress.Meter):
    """What has been done of some pieces, how fast, and how long the rest will take."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        super().__init__(sum(piece.weight for piece in pieces), "pieces")
        self.count = len(pieces)
        self.seconds = 0.0
        self.pieces = self.clips = self.rejected = self.bytes = 0
        self.failed: list[str] = []
        self.notes: list[str] = []

    def add(self, facts: dict[str, Any]) -> None:
        self.pieces += 1
        self.advance(facts["weight"])
        self.seconds += facts["seconds"]
        self.clips += facts["clips"]
        self.rejected += facts["rejected"]
        self.bytes += facts["bytes"]
        self.notes += facts["notes"]
        if facts["error"]:
            self.failed.append(facts["error"])
            print(f"failed: {facts['video']}: {facts['error']}", file=sys.stderr, flush=True)

    def line(self) -> str:
        rate = self.seconds / max(self.elapsed(), 1e-3)
        counts = f"{self.pieces}/{self.count}, {self.clips} clips, {self.rejected} set aside"
        return f"{counts} | {rate:.1f} x real time | ETA {self.left()}"


def follow(results: Iterable[dict[str, Any]], meter: Meter) -> None:
    """Count the results as they come, with a bar in a terminal and now and then a line elsewhere."""
    deque(progress.follow(results, meter, meter.add), maxlen=0)
