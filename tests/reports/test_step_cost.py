"""The section of a run's page that tells what its steps cost."""

import re

import pytest

from jala_ray.reports.kit.figures import MAX_BARS, stacked
from jala_ray.reports.run.page import write_pretrain_report
from tests.reports.test_report import Page, append, run_dir, small_plotly

__all__ = ["run_dir", "small_plotly"]


def test_what_a_step_costs_is_drawn_and_told(run_dir):
    """Rows of two and of eight steps: means are of steps, not of rows."""
    assert "What a step costs" not in Page(write_pretrain_report(run_dir)).source, "older rows tell none of it"
    parts = {"data": 0.5, "copy": 0.0, "forward": 1.0, "backward": 2.0, "optimizer": 0.25, "other": 0.0}
    row = {f"step_s/{part}": seconds for part, seconds in parts.items()} | {"attempt": 0, "tflops_per_s": 412.0}
    row |= {"mfu": 0.4166, "memory_gb": 61.2, "rank_balance": 1.01, "straggler": 1.2, "goodput": 0.9}
    (run_dir / "metrics.jsonl").write_text("")
    append(run_dir, {"step": 2, **row}, {"step": 10, **row, "step_s/other": 5.0})
    page = Page(write_pretrain_report(run_dir))
    figure = page.figure("A step by its parts")
    assert figure["layout"]["barmode"] == "stack"
    named = {trace["name"]: trace["y"] for trace in figure["data"]}
    assert named["Backward"] == [2.0, 2.0] and named["Between steps"] == [0.0, 5.0] and "Copy" not in named
    text = re.sub(r"\s+", " ", page.sections["cost"])
    assert "Between steps 4.000" in text and "Forward 1.000 12.9%" in text
    assert "41.7% median, 412" in re.sub(r" +", " ", page.tile("MFU"))
    assert "61.2 GB" in page.tile("Memory") and "90.0%" in page.tile("Goodput")
    assert {trace["name"] for trace in page.figure("Slowest rank / mean of the ranks")["data"]} == {
        *("FLOPs", "forward time"),
    }
    assert "step_s/" not in page.sections.get("other", "") and "goodput" not in page.sections.get("other", "")


def test_bars_of_a_long_run_are_means_of_its_stretches():
    line = [(step, float(step % 2)) for step in range(1, 1001)]
    (trace,) = stacked({"a": line}, {"a": "@c1"}, "step", "s")["data"]
    assert len(trace["x"]) == len(trace["y"]) == MAX_BARS and trace["x"][-1] == 1000
    assert sum(trace["y"]) / MAX_BARS == pytest.approx(0.5)
