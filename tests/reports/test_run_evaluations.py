"""The page shows what evaluators measured while the run trained, and which of them failed."""

from __future__ import annotations

from pathlib import Path

from jala_ray.reports.run.folder import read_run
from jala_ray.reports.run.page import findings_of, write_pretrain_report
from tests.reports.test_report import Page, append, run_dir, small_plotly  # noqa: F401


def test_figures_are_drawn_by_evaluator_and_domain(run_dir: Path) -> None:  # noqa: F811
    for step in (41, 42):
        append(
            run_dir,
            {
                "step": step,
                "eval/generation/mpjpe": 9.0 - step / 10,
                "eval/generation/lab/mpjpe": 7.5,
                "eval/mine.f/x/y": 1.0,
            },
            {"step": step, "eval/broken.f/failed": f"ValueError: <no> at step {step}"},
        )
    page = Page(write_pretrain_report(run_dir))
    text = page.sections["evaluations"]
    for words in (
        "generation",
        "mine.f",
        "x/y",
        "It failed at 2 steps, the last one 42",
        "ValueError: <no> at step 42",
    ):
        assert words in text, words
    drawn = page.figure("MPJPE")["data"]
    assert [(trace["name"], list(trace["x"])) for trace in drawn] == [("All", [41, 42]), ("Lab", [41, 42])]
    assert "eval/" not in page.sections.get("other", "")
    found = [finding.line for finding in findings_of(read_run(run_dir))]
    assert [line for line in found if "broken.f" in line] == [
        "WARNING The evaluation broken.f failed. step 42: ValueError: <no> at step 42. Training went on without it."
    ]


def test_one_that_works_again_is_no_warning(run_dir: Path) -> None:  # noqa: F811
    append(run_dir, {"step": 41, "eval/a.f/failed": "ValueError: x"}, {"step": 42, "eval/a.f/x": 1.0})
    assert not any("a.f" in finding.line for finding in findings_of(read_run(run_dir)))


def test_a_run_without_them_has_no_such_section(run_dir: Path) -> None:  # noqa: F811
    assert "evaluations" not in Page(write_pretrain_report(run_dir)).sections
