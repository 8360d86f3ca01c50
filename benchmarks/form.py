"""The form every benchmark has: a table of medians, then its figures as one JSON object on the last line."""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def medians(sides: Mapping[str, Callable[[], object]], repeats: int = 7) -> dict[str, float]:
    """Median seconds of each side of `samples`."""
    return {name: statistics.median(values) for name, values in samples(sides, repeats).items()}


def samples(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, measured in turns, so that a slow moment of the machine meets all of them."""
    for run in sides.values():
        run()  # warm caches and lazy imports
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def report(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], figures: Mapping[str, object]) -> None:
    """Print the table and the JSON line."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(title)
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(json.dumps(dict(figures)))


def peak_mb() -> float:
    """Largest resident size of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
