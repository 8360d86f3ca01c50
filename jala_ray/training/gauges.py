"""What a run tells Prometheus: names, what they mean, and how they are read from a row. Ray's agents export them (`exported.py`).

Ray puts `ray_` before every name. Files of `infra/monitoring` use no other names of ours, which a test checks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Row = dict[str, Any]


@dataclass(frozen=True)
class RunMetric:
    """One metric of a run."""

    name: str
    """Without Ray's prefix."""
    meaning: str
    key: str = ""
    """Of a row; "" for what does not come from one."""
    kind: Literal["gauge", "counter"] = "gauge"

    @property
    def seen_as(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


STEP = RunMetric("jala_step", "optimizer steps done", "step")
STEPS = RunMetric("jala_steps_planned", "the run's last step")
ROW_TIME = RunMetric("jala_row_time_seconds", "when the newest row was written, seconds since 1970", "time_s")
ROW_EVERY = RunMetric("jala_row_every_seconds", "seconds between two rows, expected: `step_s` x `train.log_every`")
SAVED_TIME = RunMetric(
    "jala_saved_time_seconds",
    "when the newest checkpoint was there, seconds since 1970; before the attempt's first one, when the attempt began",
)
SAVED_EVERY = RunMetric(
    "jala_saved_every_seconds", "seconds between two checkpoints, expected: `step_s` x `train.checkpoint_every`"
)
FROM_ROWS = (
    STEP,
    ROW_TIME,
    RunMetric("jala_attempt", "1, then one more for every resume", "attempt"),
    RunMetric("jala_loss", "the weighted loss", "loss"),
    RunMetric("jala_grad_norm", "gradient norm before clipping", "grad_norm"),
    RunMetric("jala_learning_rate", "of this step", "lr"),
    RunMetric("jala_step_seconds", "seconds per step", "step_s"),
    RunMetric("jala_samples_per_second", "of all ranks together", "samples_per_s"),
    RunMetric("jala_data_wait_ratio", "share of the time spent waiting for data", "data_wait"),
    RunMetric(
        "jala_goodput_ratio",
        "share of the time since the first start in which steps that count were trained",
        "goodput",
    ),
    RunMetric("jala_mfu_ratio", "needed FLOP/s of the device's peak; absent where that is not known", "mfu"),
    RunMetric("jala_memory_gigabytes", "GB, of the rank that took the most", "memory_gb"),
    RunMetric("jala_straggler_ratio", "slowest / mean of the ranks' seconds in the forward pass", "straggler"),
    RunMetric("jala_rank_balance_ratio", "slowest / mean of the ranks' needed FLOPs", "rank_balance"),
    RunMetric("jala_padding_ratio", "share of the token slots that hold nothing", "padding"),
    RunMetric("jala_rho", "how much z depends on the second frame; below 0.05 it is collapsing", "monitor/rho"),
)
COUNTED = (
    RunMetric("jala_rows", "plan rows asked for since the worker began", "rows", "counter"),
    RunMetric("jala_rows_quarantined", "of them those that could not be read", "quarantined", "counter"),
    RunMetric("jala_steps_empty", "steps without any row that could be read", "empty_steps", "counter"),
)
ALL = (*FROM_ROWS, STEPS, ROW_EVERY, SAVED_TIME, SAVED_EVERY, *COUNTED)
RUN_TAG = "run"
"""The label of all of them: the run's name."""


class RunGauges:
    """Tells `gauge` (name, value) and `count` (name, increase) of rows and checkpoints of one attempt."""

    def __init__(
        self,
        planned: int,
        log_every: int,
        checkpoint_every: int,
        gauge: Callable[[str, float], None],
        count: Callable[[str, float], None],
    ) -> None:
        self.every = {ROW_EVERY.name: log_every, SAVED_EVERY.name: checkpoint_every}
        self._gauge, self._count = gauge, count
        gauge(STEPS.name, planned)
        self.saved()

    def saved(self) -> None:
        """A checkpoint is in its place."""
        self._gauge(SAVED_TIME.name, time.time())

    def row(self, row: Row) -> None:
        """A row was written."""
        for metric in FROM_ROWS:
            if (value := _number(row.get(metric.key))) is not None:
                self._gauge(metric.name, value)
        for metric in COUNTED:
            if (value := _number(row.get(metric.key))) is not None and value > 0:
                self._count(metric.name, value)
        if (seconds := _number(row.get("step_s"))) is not None:
            for name, steps in self.every.items():
                self._gauge(name, seconds * steps)


def _number(value: Any) -> float | None:
    """None for what is none, and for what is not finite: a graph shows a gap there, and the alert on a stalled run comes."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
