"""What is told to Prometheus of rows and checkpoints."""

from __future__ import annotations

import math
import time

from jala_ray.training.gauges import ALL, COUNTED, FROM_ROWS, RunGauges


def told() -> tuple[dict[str, float], dict[str, float], RunGauges]:
    values: dict[str, float] = {}
    counts: dict[str, float] = {}

    def count(name: str, more: float) -> None:
        counts[name] = counts.get(name, 0.0) + more

    return values, counts, RunGauges(100, 10, 50, values.__setitem__, count)


def test_a_row_becomes_gauges_and_counters() -> None:
    values, counts, gauges = told()
    began = values["jala_saved_time_seconds"]
    assert values["jala_steps_planned"] == 100 and abs(began - time.time()) < 10
    row = {"step": 10, "time_s": 5.0, "loss": 2.5, "step_s": 0.5, "data_wait": 0.25, "rows": 60, "quarantined": 2}
    gauges.row(row | {"mfu": None, "grad_norm": math.nan, "monitor/rho": 0.3, "empty_steps": 0})
    gauges.row(row | {"step": 20, "quarantined": 0})
    assert (values["jala_step"], values["jala_loss"], values["jala_rho"]) == (20.0, 2.5, 0.3)
    assert (values["jala_row_every_seconds"], values["jala_saved_every_seconds"]) == (5.0, 25.0)
    assert "jala_mfu_ratio" not in values and "jala_grad_norm" not in values
    assert counts == {"jala_rows": 120.0, "jala_rows_quarantined": 2.0}
    gauges.saved()
    assert values["jala_saved_time_seconds"] >= began


def test_names_are_one_each_and_prometheus_takes_them() -> None:
    names = [metric.name for metric in ALL]
    assert len(set(names)) == len(names) and all(name.startswith("jala_") for name in names)
    assert all(metric.key for metric in (*FROM_ROWS, *COUNTED))
    assert {metric.seen_as for metric in COUNTED} == {f"ray_{metric.name}_total" for metric in COUNTED}
