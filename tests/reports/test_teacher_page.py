"""The page of a teacher, and what a run's page says of the run's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jala_ray.config import TeacherConfig
from jala_ray.models.inverse_dynamics import PairSight
from jala_ray.reports.kit.figures import Charts
from jala_ray.reports.run.folder import read_run
from jala_ray.reports.run.page import findings_of, write_pretrain_report
from jala_ray.reports.run.publish import warnings_of
from jala_ray.reports.teacher import failures
from jala_ray.reports.teacher.failures import ToldChunk, worst
from jala_ray.reports.teacher.page import WORST, teacher_page, worst_rows
from jala_ray.reports.teacher.tables import teacher_findings
from jala_ray.training.teacher.fit import Fitted, fit
from tests.reports.browser import open_browser
from tests.support import made_chunks


@pytest.fixture(scope="module")
def found() -> Fitted:
    """On 60 clips of Lab and 40 of Wild."""
    return fit(TeacherConfig(directions=4), made_chunks(120, 4, 6), None, PairSight((2, 2), 2, False))


def plain(found: Fitted, **changed: Any) -> dict[str, Any]:
    return found.report.plain() | {"rows": 60, "left_out": 0, "streamed": False} | changed


def lines(report: dict[str, Any]) -> str:
    return "\n".join(finding.line for finding in teacher_findings(report))


def test_warnings_come_from_figures(found: Fitted) -> None:
    report = plain(found)
    assert report["clips"] == {"lab": 60, "wild": 40} and teacher_findings(report) == []
    weak = {"motion": 0.4, "wrist": 0.9, "finger": 0.1}
    said = lines(report | {"r2": {**report["r2"], "wild": weak}})
    assert said.startswith("WARNING Wild: the teacher tells less than half of the motion. R2 0.40")
    alone = {"v_t alone": {"lab": report["reads"]["all"]["lab"]}}
    assert "Lab: the first frame alone tells nearly as much" in lines(report | {"reads": report["reads"] | alone})
    assert "Wild: few labelled clips. 40 labelled hand-chunks of 12 clips" in lines(report | {"clips": {"wild": 12}})
    r2 = {"lab": report["r2"]["lab"]}
    assert "Wild: too few labels for a figure." in lines(report | {"r2": r2})
    assert "3 left out" in lines(report | {"left_out": 3})


def test_groups_hold_all_chunks_and_their_errors(found: Fitted) -> None:
    chunks = [ToldChunk.of(row) for row in found.held_out]
    for told in chunks:
        told.true_cm[:] /= 10
        told.told_cm[:] /= 10
    shown = failures.section(chunks, Charts())
    assert "chunk 2" in shown and "left" in shown
    order = [shown.index(name) for name in ("1 to 3 cm", "3 to 6 cm", "6 to 12 cm", "12 cm and more")]
    assert sorted(order) == order
    most = worst(chunks, 5)
    assert len({told.clip for told in most}) == 5
    errors = [np.linalg.norm(np.subtract(row["true_cm"], row["told_cm"])) for row in found.held_out]
    assert most[0].error_cm == pytest.approx(max(errors) / 10)
    assert len(worst_rows(found.held_out)) <= WORST


def test_the_page_runs_without_network(found: Fitted, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(teacher_page("a <teacher>", plain(found), found.held_out, {}, "cache"))
    with open_browser(tmp_path) as browser:
        browser.open(page)
        browser.wait("document.querySelectorAll('.chart .main-svg').length >= 4")
        assert browser.evaluate("document.querySelectorAll('#fails table').length") == 5
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for width in (420, 1280):
            browser.open(page, width=width, dark=width == 420)
            assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        assert browser.errors == [] and all(url.startswith(("file:", "data:")) for url in browser.requests)


def test_a_teacher_kept_without_its_held_out_chunks_has_a_page(found: Fitted) -> None:
    report = plain(found)
    del report["clips"], report["held_by"]
    assert "fit it again" in teacher_page("old", report, (), {})


def test_a_run_s_page_shows_its_teacher(found: Fitted, tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets/teacher.json").write_text(json.dumps({"sight": {}, "report": plain(found, left_out=3)}))
    (tmp_path / "config.json").write_text(json.dumps({"name": "run"}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    page = write_pretrain_report(tmp_path).read_text()
    assert 'id="teacher"' in page and "Labelled hand-chunks" in page
    assert any("could not be read" in finding.text for finding in findings_of(read_run(tmp_path)))
    assert any("could not be read" in line for line in warnings_of(str(tmp_path)))
