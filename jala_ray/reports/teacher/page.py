"""The page of a teacher: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jala_ray.reports.kit.figures import Charts
from jala_ray.reports.kit.findings import counted, warning_list
from jala_ray.reports.kit.html import Html, el, join, page
from jala_ray.reports.kit.widgets import absent, number, tile
from jala_ray.reports.teacher import failures, tables
from jala_ray.reports.teacher.failures import ToldChunk, worst
from jala_ray.storage import StorageOptions
from jala_ray.types import Clip

PAGE = "report.html"
WORST = 12
"""Clips shown with pictures."""


def worst_rows(held_out: Sequence[Mapping[str, Any]]) -> set[int]:
    """Rows of the manifest whose clips `teacher_page` shows."""
    return {told.row for told in worst([ToldChunk.of(row) for row in held_out], WORST)}


def teacher_page(
    name: str,
    report: Mapping[str, Any],
    held_out: Sequence[Mapping[str, Any]],
    clips: Mapping[int, Clip],
    lede: str = "",
    options: StorageOptions | None = None,
) -> str:
    """The document. `report` and `held_out` as a `Teacher` has them, `clips` of `worst_rows`."""
    from jala_ray.reports.teacher import pictures  # decodes videos

    charts, findings, chunks = Charts(), tables.teacher_findings(report), [ToldChunk.of(row) for row in held_out]
    content = [
        ("warnings", "Warnings", warning_list(findings) if findings else absent("Nothing stands out.")),
        ("worth", "What it is worth", tables.worth(report)),
        ("reads", "What it reads", tables.reads(report)),
        ("fails", "Where it fails", failures.section(chunks, charts)),
        ("worst", "The worst chunks", pictures.section(worst(chunks, WORST), clips, options)),
        ("choices", "How it was chosen", tables.choices(report)),
    ]
    header = join(
        el("p", "Inverse-dynamics teacher", class_="kicker"),
        el("div", el("h1", name), counted(findings), class_="title"),
        el("p", lede, class_="lede"),
        el("div", _tiles(report), class_="tiles"),
    )
    return page(f"{name} · Teacher", header, content, charts.figures)


def _tiles(report: Mapping[str, Any]) -> list[Html]:
    found = [
        tile(f"R2 of motion, {tables.named(domain)}", number(r2["motion"], 2), join("wrist ", number(r2["wrist"], 2)))
        for domain, r2 in report["r2"].items()
    ]
    chunks, clips = (sum(report.get(name, {}).values()) for name in ("chunks", "clips"))
    return [*found, tile("Labelled hand-chunks", number(chunks), join("of ", number(clips), " clips"))]
