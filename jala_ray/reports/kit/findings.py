"""Warnings of a page: each with its severity, its figure, what is so, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.widgets import badge


@dataclass(frozen=True)
class Finding:
    level: Literal["bad", "warn"]
    """Bad: what was asked for is not so. Warn: to be known before the numbers are used."""
    text: str
    """A sentence."""
    detail: str = ""
    """What it may come from, and what to do."""
    figure: str = ""
    """The numbers behind it."""

    @property
    def line(self) -> str:
        """One line for a terminal."""
        parts = (self.text, self.figure and f"{self.figure}.", self.detail)
        return f"WARNING {' '.join(part for part in parts if part)}".replace("\n", " ")


def counted(findings: Sequence[Finding]) -> Html | None:
    """A badge with their number, in the colour of the first; None where there are none."""
    if not findings:
        return None
    return badge(f"{len(findings)} warning{'' if len(findings) == 1 else 's'}", findings[0].level)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: finding.level != "bad")


def warning_list(findings: Sequence[Finding]) -> Html:
    items = []
    for finding in findings:
        mark = badge("check" if finding.level == "bad" else "note", finding.level)
        below = [
            join(el("br"), el("span", text, style="color:var(--muted);font-size:.8rem"))
            for text in (finding.figure, finding.detail)
            if text
        ]
        style = "display:grid;grid-template-columns:4.4rem 1fr;align-items:start;padding:.4rem 0"
        items.append(
            el("li", el("span", mark), el("span", finding.text, below), style=f"{style};overflow-wrap:anywhere")
        )
    return el("ul", items, style="list-style:none;margin:.4rem 0 0;padding:0")
