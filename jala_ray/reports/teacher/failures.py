"""Where a teacher fails: the wrist's displacement within held-out chunks, as it is and as a fit without the chunk's fold tells it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jala_ray.reports.kit.figures import Charts
from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.widgets import DOMAIN_COLORS, about, absent, number, table
from jala_ray.reports.teacher.tables import named

SIZES_CM = (1.0, 3.0, 6.0, 12.0)
"""Edges of the groups by size of motion."""
LATE = 4
"""Chunks from this one on are one group."""
AXES = ("x, right", "y, down", "z, forward")
GRID = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:.4rem 2rem;align-items:start;margin-top:1rem"
Group = tuple[int, str]
"""Its place among others, and its name."""


@dataclass(frozen=True)
class ToldChunk:
    """A held-out labelled hand-chunk."""

    domain: str
    source: str
    clip: str
    row: int
    time: int
    hand: str
    true_cm: np.ndarray
    """(3,) displacement of the wrist from the chunk's first frame to its last."""
    told_cm: np.ndarray

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> ToldChunk:
        words = {name: row[name] for name in ("domain", "source", "clip", "row", "time", "hand")}
        return cls(**words, true_cm=np.array(row["true_cm"]), told_cm=np.array(row["told_cm"]))

    @property
    def error_cm(self) -> float:
        return float(np.linalg.norm(self.told_cm - self.true_cm))

    @property
    def moved_cm(self) -> float:
        return float(np.linalg.norm(self.true_cm))


def worst(chunks: Sequence[ToldChunk], count: int) -> list[ToldChunk]:
    """The chunks with the largest errors, one a clip."""
    of: dict[str, ToldChunk] = {}
    for told in sorted(chunks, key=lambda told: -told.error_cm):
        of.setdefault(told.clip, told)
    return list(of.values())[:count]


def section(chunks: Sequence[ToldChunk], charts: Charts) -> Html:
    if not chunks:
        return absent("This teacher was kept without its held-out chunks: fit it again to see them.")
    text = (
        f"{len(chunks):,} labelled hand-chunks, domains in turn, each told by a fit without its part: where the wrist is at the end of the "
        "chunk's second, from where it was at the beginning, in cm, in the camera of the clip's first frame."
    )
    placed = [
        charts.place(f"Wrist, {axis}", "told over true; dotted: told as it was", _over(chunks, _along(i), "told"))
        for i, axis in enumerate(AXES)
    ]
    note = "dotted: saying that nothing moves"
    placed.append(charts.place("Error over size of motion", note, _over(chunks, _missed, "error")))
    groups: list[tuple[str, Callable[[ToldChunk], Group]]] = [
        ("By size of motion", lambda told: _size(told.moved_cm)),
        ("By domain", lambda told: (0, named(told.domain))),
        ("By source", lambda told: (0, told.source)),
        ("By hand", lambda told: (0, told.hand)),
        ("By time in the clip", lambda told: _time(told.time)),
    ]
    tables = [el("div", el("h3", title), _groups(chunks, of)) for title, of in groups]
    below = "Still: the error of saying that nothing moves. Where the teacher's is no smaller, it tells nothing."
    return join(about(text), el("div", placed, class_="charts"), el("div", tables, style=GRID), about(below))


def _along(axis: int) -> Callable[[ToldChunk], tuple[float, float]]:
    return lambda told: (float(told.true_cm[axis]), float(told.told_cm[axis]))


def _missed(told: ToldChunk) -> tuple[float, float]:
    return round(told.moved_cm, 2), round(told.error_cm, 2)


def _over(chunks: Sequence[ToldChunk], place: Callable[[ToldChunk], tuple[float, float]], name: str) -> dict[str, Any]:
    """A point a chunk, by domain, and the line on which both are equal."""
    data = []
    for domain in dict.fromkeys(told.domain for told in chunks):
        own = [told for told in chunks if told.domain == domain]
        x, y = zip(*map(place, own), strict=True)
        said = [f"{told.clip}, {told.hand}, chunk {told.time + 1}" for told in own]
        marker = {"size": 5, "opacity": 0.6, "color": DOMAIN_COLORS.get(domain, "@c4")}
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": named(domain),
                "x": x,
                "y": y,
                "text": said,
                "marker": marker,
            }
        )
    ends = [value for told in chunks for value in place(told)]
    low, high = min(ends), max(ends)
    line = {"color": "@muted", "width": 1, "dash": "dot"}
    equal = {"type": "line", "x0": low, "y0": low, "x1": high, "y1": high, "line": line, "layer": "below"}
    layout = {
        "shapes": [equal],
        "xaxis": {"title": {"text": "true, cm"}},
        "yaxis": {"title": {"text": f"{name}, cm", "standoff": 6, "font": {"size": 11}}},
        "hovermode": "closest",
        "showlegend": len(data) > 1,
    }
    return {"data": data, "layout": layout, "loggable": False}


def _groups(chunks: Sequence[ToldChunk], of: Callable[[ToldChunk], Group]) -> Html:
    found: dict[Group, list[ToldChunk]] = {}
    for told in chunks:
        found.setdefault(of(told), []).append(told)
    rows = []
    for group in sorted(found):
        errors, still = ([getattr(told, key) for told in found[group]] for key in ("error_cm", "moved_cm"))
        ends = [number(float(np.percentile(errors, share)), 3) for share in (50, 90)]
        rows.append([group[1], *ends, number(float(np.median(still)), 3), number(len(errors))])
    return table(("", "Error, median cm", "90 %", "Still", "Chunks"), rows, numbers=(1, 2, 3, 4))


def _size(moved_cm: float) -> Group:
    rank = int(np.searchsorted(SIZES_CM, moved_cm, side="right"))
    if rank == len(SIZES_CM):
        return rank, f"{SIZES_CM[-1]:g} cm and more"
    return rank, f"{(0.0, *SIZES_CM)[rank]:g} to {SIZES_CM[rank]:g} cm"


def _time(time: int) -> Group:
    return min(time, LATE), f"chunk {time + 1}" if time < LATE else f"chunk {LATE + 1} and later"
