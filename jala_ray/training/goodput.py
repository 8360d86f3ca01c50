"""Which share of the time since a run was first started it has trained, restarts and lost steps included."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]


class Goodput:
    """Useful seconds are those of the steps in the surviving history, but for the wait for data. Steps that a resume does again, starts,
    evaluations, checkpoints and the time in which the run was not running are not useful.
    """

    def __init__(self, kept: Sequence[Row], lost: Iterable[Row], start: int, begun: float | None = None) -> None:
        """`kept` and `lost` rows of earlier attempts, which ended at step `start`; `begun` when the first of them began, as it was
        written down. Rows tell it, too: whichever is earlier counts.
        """
        told = [first for row in (*kept, *lost) if (first := _begun(row)) is not None]
        self.begun = min([*told, time.time() if begun is None else begun])
        self.useful_s, self._step = 0.0, 0
        for row in kept:
            self.add(row)
        self._step = start

    def add(self, row: Row) -> float | None:
        """Goodput up to this row; None for one that tells no time."""
        useful = _useful(row, row["step"] - self._step)
        self._step = row["step"]
        if useful is None:
            return None
        self.useful_s += useful
        return self.useful_s / max(row.get("time_s", time.time()) - self.begun, self.useful_s, 1e-9)


def _useful(row: Row, steps: int) -> float | None:
    if not isinstance(row.get("step_s"), (int, float)):
        return None
    return steps * row["step_s"] * (1.0 - (row.get("data_wait") or 0.0))


def _begun(row: Row) -> float | None:
    """When the last step before a row began, at the latest."""
    if not isinstance(row.get("time_s"), (int, float)):
        return None
    return row["time_s"] - (row.get("step_s") or 0.0)
