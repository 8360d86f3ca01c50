"""Successive halving, asynchronous (ASHA, Li et al. 2020, arXiv:1810.05934) or in waves: a pure function of the ledger.

Ray's own scheduler keeps its rungs in memory; here they are read from the reports, so that a continued sweep decides as an unbroken one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from jala_ray.sweeps.ledger import Record
from jala_ray.sweeps.metrics import TrialMetric
from jala_ray.types import ConfigError


@dataclass(frozen=True)
class Halving:
    """At rungs `first`, `first` x `factor`, ... below `last` steps a trial goes on if it is among the best 1 / `factor` there."""

    metric: TrialMetric
    first: int
    last: int
    factor: int = 3

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise ConfigError("--factor", self.factor, "an integer >= 2")
        if not 0 < self.first < self.last:
            raise ConfigError("--report-every", self.first, f"less than the {self.last} steps of a trial")

    @property
    def rungs(self) -> list[int]:
        found, step = [], self.first
        while step < self.last:
            found.append(step)
            step *= self.factor
        return found

    def at(self, record: Record, rung: int) -> tuple[int, float] | None:
        """(order, error) of a trial's first report at or after a rung."""
        row = next((row for row in record.rows if row["step"] >= rung), None)
        value = None if row is None else self.metric.value(row)
        return None if row is None or value is None else (row["order"], self.metric.error(value))

    def stops(self, record: Record, others: Iterable[Record], waves: bool) -> bool:
        """Whether a trial ends with its last report. Of `others`, those count that reported at the rung before; in waves, all do:
        they are of earlier waves, and finished."""
        if len(record.rows) < 1:
            return False
        step, before = record.step, record.rows[-2]["step"] if len(record.rows) > 1 else 0
        rung = next((r for r in reversed(self.rungs) if before < r <= step), None)
        own = self.at(record, rung) if rung is not None else None
        if rung is None or own is None:
            return False
        order, error = own
        found = [at for other in others if (at := self.at(other, rung)) is not None]
        errors = [value for earlier, value in found if waves or earlier < order]
        return bool(errors) and error > cutoff(errors, self.factor)

    def expected_share(self) -> float:
        """Of the steps of trials that all run to the end, if each rung lets 1 / factor pass."""
        share, done, alive = 0.0, 0, 1.0
        for rung in [*self.rungs, self.last]:
            share, done, alive = share + alive * (rung - done), rung, alive / self.factor
        return share / self.last


def cutoff(errors: Sequence[float], factor: int) -> float:
    """The error that the best 1 / factor of these do not exceed."""
    return float(np.percentile(errors, 100 / factor))
