"""What a page of a motion evaluation is made of: planted numbers, and the page read back."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from jala_ray.evaluation.records import Evaluation
from jala_ray.reports.motion.page import motion_page
from tests.reports.inspection.pages import Inspection
from tests.reports.test_clip_videos import make_record

METRICS = ("mpjpe", "pa_mpjpe", "mwte", "mde")
ROWS = ("jala", "no_align", "floor", "hold_first", "mean_motion")


def planted(row: str, domain: str, metric: str) -> float:
    """A number for each place of a table."""
    return 1.25 + 2 * ROWS.index(row) + 10 * (domain == "wild") + 0.11 * METRICS.index(metric)


def line(row: str, domain: str, clips: int = 40) -> dict[str, Any]:
    values = {metric: planted(row, domain, metric) for metric in METRICS}
    return {m: {"mean": v, "low": v - 0.5, "high": v + 0.75, "clips": clips} for m, v in values.items()}


def make_scores(**change: object) -> dict[str, Any]:
    domains = {"lab": 40, "wild": 7}
    picked = [
        {"kind": kind, "row": "jala", "clip_id": name, "domain": "lab", "scores": {"mpjpe": 3.25, "mde": None}}
        for kind, name in (("best", "a"), ("median", "b"), ("worst", "broken"))
    ]
    return {
        "metrics": list(METRICS),
        "rows": list(ROWS),
        "models": list(ROWS[:2]),
        "table": {row: {domain: line(row, domain, n) for domain, n in domains.items()} for row in ROWS},
        "by_source": {"hot3d": {row: line(row, "lab", 30) for row in ROWS}, "ego4d": {"jala": line("jala", "wild", 7)}},
        "by_task": {"generation": {row: line(row, "lab", 39) for row in ROWS}},
        "by_hand": {side: {row: line(row, "lab", 20) for row in ROWS} for side in ("left", "right")},
        "horizon": {
            domain: {
                row: [{"second": s, "mpjpe": planted(row, domain, "mpjpe") + s, "clips": 50 - s} for s in (1, 2)]
                for row in ROWS
            }
            for domain in domains
        },
        "picked": picked,
        **change,
    }


def make_latents() -> dict[str, Any]:
    probes = [
        {"subject": subject, "group": "lab", "target": target, "r2": r2, "low": r2 - 0.1, "high": r2 + 0.1}
        for subject, r2 in (("v0", -0.25), ("z", 0.75), ("h19", 0.5))
        for target in ("wrist", "finger")
    ]
    points = {
        "x": [0.5, 1.5, 2.5, 3.5] * 13,
        "y": [4.0, 3.0, 2.0, 1.0] * 13,
        "domain": ["wild", "lab", "lab", "wild"] * 13,
        "hand": ["left", "right", "right", "left"] * 13,
        "source": ["ego4d", "hot3d", "arctic", "ego4d"] * 13,
    }
    retrieval = {"recall1": 0.625, "recall5": 0.875, "median_rank": 1.0, "chance1": 0.03125, "count": 32}
    return {"probes": probes, "retrieval": retrieval, "tsne": {"z": points, "h": points}}


def make_evaluation(**change: object) -> Evaluation:
    clips = [make_record(0, 0.05, clip_id=name, row=i) for i, name in enumerate(("a", "b", "broken"))]
    clips.append(make_record(0, 0, clip_id="dead", failure="its video is cut off", hands=()))
    facts = {"command": ["python", "jobs/evaluate.py", "a b"], "seed": 7, "checkpoints": {"jala": Path("/runs/x")}}
    return replace(Evaluation("/data/world.parquet", ROWS, clips, facts), **change)  # pyright: ignore[reportArgumentType]


class MotionPage(Inspection):
    """The parsed page of a motion evaluation, written to a file as a caller would."""

    def __init__(self, folder: Path, *inputs: Any) -> None:
        path = folder / "report.html"
        path.write_text(motion_page(*inputs), "utf-8")
        super().__init__(path)

    def text(self, section: str) -> str:
        return re.sub(r"\s+", " ", self.sections[section])

    def cells(self, section: str, name: str) -> list[list[str]]:
        """The rows of a section's tables that begin with a name: the texts of the other cells."""
        return [[text for text, _ in row[1:]] for row in self.rows[section] if row[0][0].startswith(name)]
