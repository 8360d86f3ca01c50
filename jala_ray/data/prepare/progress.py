"""How far the preparation of videos has come, by their weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jala_ray import progress
from jala_ray.data.adapters.video_folder import told
from jala_ray.data.prepare.job import VideoPiece
from jala_ray.progress import clock

__all__ = ["PieceMeter", "clock"]


class PieceMeter(progress.Meter):
    """What has been done of some pieces, how fast, and how long the rest will take."""

    def __init__(self, pieces: Sequence[VideoPiece]) -> None:
        super().__init__(sum(piece.weight for piece in pieces), "pieces")
        self.count, self.pieces, self.notes = len(pieces), 0, list[str]()
        self.counts = dict.fromkeys(("clips", "rejected", "seconds", "bytes"), 0)

    def add(self, facts: Mapping[str, Any]) -> None:
        self.pieces += 1
        self.notes += facts["notes"]
        super().add({name: value for name, value in facts.items() if name != "notes"})

    def line(self) -> str:
        rate = self.counts["seconds"] / max(self.elapsed(), 1e-3)
        counts = f"{self.pieces}/{self.count}, {self.counts['clips']} clips, {self.counts['rejected']} set aside"
        return f"{counts} | {rate:.1f} x real time | ETA {self.left()}"

    def summary(self) -> str:
        video, size = clock(self.counts["seconds"]), self.counts["bytes"] / 1e6
        line = f"prepared {video} of video, {size:.1f} MB, in {clock(self.elapsed())}"
        return "\n".join([line, told(self.notes)] if self.notes else [line])
