"""How far a long job has come, in one line: rate and time left. A bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

T = TypeVar("T")

LINE_SHARE = 0.05
"""Where nobody watches, a line is printed whenever so much more of the work is done."""


class Meter:
    """What has been done of some work, how fast, and how long the rest will take.

    `total` is the whole work's weight. `counts` are printed beside it, e.g. rows; the first of them has a rate.
    """

    def __init__(self, total: float, unit: str) -> None:
        self.total, self.unit, self.began, self.done = total, unit, time.monotonic(), 0.0
        self.counts: dict[str, float] = {}

    def advance(self, weight: float = 1.0, **counts: float) -> None:
        """So much more is done. Underscores in a count's name stand for spaces."""
        self.done += weight
        for name, more in counts.items():
            self.counts[name] = self.counts.get(name, 0) + more

    def add(self, facts: Mapping[str, Any]) -> None:
        """Count a part that is done by its facts: its `weight`, 1 unless it says so, and numbers by their names."""
        counts = {name: value for name, value in facts.items() if name not in ("part", "weight", "error")}
        self.advance(facts.get("weight", 1.0), **counts)

    def summary(self) -> str:
        """The line printed when all is done, after the last; "" for none."""
        return ""

    def elapsed(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self.began

    def left(self) -> str:
        """Time left at the rate so far, as `clock` writes it."""
        return clock(self.elapsed() * max(0.0, self.total / self.done - 1)) if self.done else "-:--"

    def line(self) -> str:
        parts = [f"{self.done:.0f}/{self.total:.0f} {self.unit}"]
        parts += [", ".join(f"{count:.0f} {name.replace('_', ' ')}" for name, count in self.counts.items())]
        rated, amount = next(iter(self.counts.items()), (self.unit, self.done))
        rate = amount / max(self.elapsed(), 1e-3)
        shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        parts += [f"{shown} {rated.replace('_', ' ')}/s", f"ETA {self.left()}"]
        return " | ".join(part for part in parts if part)


def clock(seconds: float) -> str:
    """h:mm:ss, without hours m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


@contextlib.contextmanager
def told(meter: Meter) -> Iterator[Callable[[], None]]:
    """A function that tells how far the meter is: by a bar in a terminal, by a line now and then elsewhere. Its clock begins now."""
    meter.began = time.monotonic()
    columns = (BarColumn(8), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, disable=not sys.stdout.isatty()) as bar:
        task, said = bar.add_task(meter.line(), total=meter.total), 0.0

        def tell() -> None:
            nonlocal said
            bar.update(task, completed=meter.done, description=meter.line())
            if bar.disable and (meter.done >= meter.total or meter.done - said >= LINE_SHARE * meter.total):
                print(f"{meter.done / meter.total:4.0%} | {meter.line()} | {clock(meter.elapsed())}", flush=True)
                said = meter.done

        yield tell


_shown: ContextVar[bool] = ContextVar("shown", default=False)


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Within it, `each` tells how far it has come; elsewhere it is silent, as a library should be."""
    token = _shown.set(True)
    try:
        yield
    finally:
        _shown.reset(token)


def each(items: Sequence[T], unit: str) -> Iterator[T]:
    """The items, one after another; while `shown`, with the progress of the work that is done between them."""
    if not _shown.get() or len(items) < 2:
        yield from items
        return
    meter = Meter(len(items), unit)
    with told(meter) as tell:
        for item in items:
            yield item
            meter.advance()
            tell()
