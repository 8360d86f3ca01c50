"""Seconds of a step by its parts: by the host's clock on a CPU, by events on a GPU, for which nothing waits."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

Parts = dict[str, float]
"""Seconds by part."""


@dataclass(frozen=True)
class Lap:
    """From one mark to the next: readings of the host's clock, or events."""

    step: Parts
    part: str
    begun: Any
    ended: Any


class Clock:
    """`begin` a step, and `lap` when a part of it is over: the time since the call before was that part's. A part may have several laps.

    On a GPU a part takes from when the device has done what came before until it has done the part. The host is ahead of it, so that
    the device's wait for a batch is the data's, and work that it is late with is nobody's wait.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.steps: list[Parts] = []
        self._laps = deque[Lap]()
        self._last: Any = None

    def begin(self) -> None:
        """A new step."""
        self.steps.append({})
        self._last = self._mark()
        while self._laps and self._laps[0].ended.query():
            self._settle()

    def lap(self, part: str) -> None:
        now = self._mark()
        if self.on_gpu:
            self._laps.append(Lap(self.steps[-1], part, self._last, now))
        else:
            add(self.steps[-1], part, now - self._last)
        self._last = now

    def read(self) -> list[Parts]:
        """The steps since the last time, when the device has done them; begins a new list."""
        while self._laps:
            self._laps[0].ended.synchronize()
            self._settle()
        steps, self.steps = self.steps, []
        return steps

    def _mark(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _settle(self) -> None:
        lap = self._laps.popleft()
        add(lap.step, lap.part, lap.begun.elapsed_time(lap.ended) / 1000)


def add(parts: Parts, part: str, seconds: float) -> None:
    parts[part] = parts.get(part, 0.0) + seconds
