"""Charts as plain plotly dictionaries.

Colours are names of the page's palette ("@c1"), resolved in the browser, so that charts follow light and
dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jala_ray.reports.kit.html import Html, el

MAX_POINTS = 1500
"""Points kept a line; longer runs are thinned for the page (headline numbers use every row)."""

MAX_BARS = 40
"""Stacked bars of a chart."""

Point = tuple[int, float]
FAINT = 0.28


@dataclass(frozen=True)
class Line:
    """One named line of a chart: `points` are (step, value), finite values only."""

    name: str
    points: Sequence[Point]
    color: str = "@c1"
    smooth: bool = False
    """Draw the raw values faintly and a smoothed line over them."""
    markers: bool = False


@dataclass(frozen=True)
class Chart:
    """A titled chart of lines over steps; `threshold` draws a line and shades the warning side below it."""

    title: str
    lines: Sequence[Line]
    note: str = ""
    threshold: float | None = None
    percent: bool = False
    from_zero: bool = False
    loggable: bool = False
    resumes: Sequence[int] = field(default_factory=tuple)

    @property
    def empty(self) -> bool:
        return not any(line.points for line in self.lines)

    def figure(self) -> dict:
        """{"data", "layout"} for Plotly.react."""
        named = sum(1 for line in self.lines if line.points)
        traces = [trace for line in self.lines if line.points for trace in _traces(line)]
        shapes = [_vertical(step) for step in self.resumes]
        axis: dict = {"tickformat": ".0%"} if self.percent else {}
        values = [value for line in self.lines for _, value in line.points]
        level = values[0] if values and min(values) == max(values) else None
        if level is not None:  # plotly's own range around a constant is one to each side, whatever its size
            axis["range"] = sorted((0.0, 2 * level)) if level else [0, 1]
        elif self.from_zero:
            axis["rangemode"] = "tozero"
        if self.threshold is not None:
            shapes += _warning_band(self.threshold)
            axis["range"] = [0, 1.08 * max([*values, 2 * self.threshold])]
        return {
            "data": traces,
            "layout": {"shapes": shapes, "yaxis": axis, "showlegend": named > 1},
            "loggable": self.loggable and level is None and min(values, default=0) > 0,
        }


@dataclass
class Charts:
    """Collects a page's figures and gives their places in it."""

    resumes: Sequence[int] = ()
    figures: dict[str, dict] = field(default_factory=dict)

    def place(self, title: str, note: str, figure: dict) -> Html:
        name = f"chart-{len(self.figures) + 1}"
        self.figures[name] = figure
        caption = el("figcaption", el("h3", title), el("span", note, class_="note") if note else None)
        return el("figure", caption, el("div", id=name, class_="chart", role="img", aria_label=title))

    def grid(self, charts: Sequence[Chart]) -> Html | None:
        placed = [self.place(chart.title, chart.note, chart.figure()) for chart in charts if not chart.empty]
        return el("div", placed, class_="charts") if placed else None


def points(rows: Iterable[dict], key: str) -> list[Point]:
    """(step, value) of every row that has a finite number under `key`."""
    found = []
    for row in rows:
        value = row.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            found.append((row["step"], value))
    return found


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential mean to both sides, so without lag; half-life 1 % of the series, at least one point."""
    decay = 0.5 ** (1 / max(1.0, len(values) / 100))
    array = np.asarray(values, float)

    def both_ways(x: np.ndarray) -> np.ndarray:
        return _decayed(x, decay) + _decayed(x[::-1], decay)[::-1] - x

    return (both_ways(array) / both_ways(np.ones_like(array))).tolist()


def thin(values: Sequence[float], limit: int = MAX_POINTS) -> list[int]:
    """Indices to draw: all of a short series, else lowest and highest of each of limit / 2 equal stretches.

    So spikes stay.
    """
    if len(values) <= limit:
        return list(range(len(values)))
    kept = {0, len(values) - 1}
    array = np.asarray(values)
    for stretch in np.array_split(np.arange(len(values)), limit // 2):
        kept |= {int(stretch[array[stretch].argmin()]), int(stretch[array[stretch].argmax()])}
    return sorted(kept)


def bars(groups: dict[str, dict[str, float]], over: str, percent: bool = False, top: float | None = None) -> dict:
    """Grouped bars: {legend name: {label: value}}; `over` names what the labels count."""
    colors = ("@c1", "@c2", "@c3", "@c4")
    data = [
        {
            "type": "bar",
            "name": name,
            "x": list(values),
            "y": [_short(v) for v in values.values()],
            "marker": {"color": colors[i % len(colors)]},
        }
        for i, (name, values) in enumerate(groups.items())
    ]
    axis: dict = {"tickformat": ".0%"} if percent else {}
    axis |= {"range": [0, top]} if top is not None else {"rangemode": "tozero"}
    layout = {
        "barmode": "group",
        "bargap": 0.3,
        "yaxis": axis,
        "xaxis": {"type": "category", "title": {"text": over}, "nticks": 0},
        "showlegend": len(groups) > 1,
    }
    return {"data": data, "layout": layout, "loggable": False}


def stacked(parts: Mapping[str, Sequence[Point]], colors: Mapping[str, str], over: str, unit: str) -> dict:
    """Bars over steps, each of the parts {legend name: points} one on another: thinned to means of `MAX_BARS` equal stretches."""
    data = []
    for name, line in parts.items():
        stretches = np.array_split(np.arange(len(line)), min(MAX_BARS, len(line)))
        data.append(
            {
                "type": "bar",
                "name": name,
                "x": [line[stretch[-1]][0] for stretch in stretches],
                "y": [_short(float(np.mean([line[i][1] for i in stretch]))) for stretch in stretches],
                "marker": {"color": colors[name]},
            }
        )
    layout = {
        "barmode": "stack",
        "bargap": 0.15,
        "yaxis": {"rangemode": "tozero", "title": {"text": unit, "standoff": 6, "font": {"size": 11}}},
        "xaxis": {"title": {"text": over}},
        "legend": {"traceorder": "normal"},
        "showlegend": True,
    }
    return {"data": data, "layout": layout, "loggable": False}


def _traces(line: Line) -> list[dict]:
    steps = [step for step, _ in line.points]
    raw = [value for _, value in line.points]
    kept = thin(raw)
    base = {"type": "scatter", "name": line.name}
    few = len(raw) < 3
    drawn = base | {
        "x": [steps[i] for i in kept],
        "y": [_short(raw[i]) for i in kept],
        "mode": "lines+markers" if line.markers or few else "lines",
        "line": {"color": line.color, "width": 2},
        "marker": {"size": 6},
    }
    if not line.smooth or few:
        return [drawn]
    soft = smoothed(raw)
    faint = drawn | {
        "mode": "lines",
        "line": {"color": line.color, "width": 1},
        "opacity": FAINT,
        "showlegend": False,
        "name": f"{line.name} (raw)",
        "meta": "raw",
    }
    over = drawn | {"mode": "lines", "y": [_short(soft[i]) for i in kept], "meta": "smooth"}
    return [faint, over]


def _decayed(values: np.ndarray, decay: float) -> np.ndarray:
    """y_i = x_i + decay * y_(i-1)."""
    total = 0.0
    out = np.empty_like(values)
    for i, value in enumerate(values):
        out[i] = total = value + decay * total
    return out


def _short(value: float) -> float:
    """Six significant digits: what a chart can show, at a third of the bytes."""
    return float(f"{value:.6g}")


def _vertical(step: int) -> dict:
    line = {"color": "@muted", "width": 1, "dash": "dot"}
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": step,
        "x1": step,
        "y0": 0,
        "y1": 1,
        "line": line,
    }


def _warning_band(threshold: float) -> list[dict]:
    across = {"xref": "paper", "yref": "y", "x0": 0, "x1": 1, "layer": "below"}
    return [
        across
        | {
            "type": "rect",
            "y0": 0,
            "y1": threshold,
            "fillcolor": "@bad",
            "opacity": 0.09,
            "line": {"width": 0},
        },
        across
        | {
            "type": "line",
            "y0": threshold,
            "y1": threshold,
            "line": {"color": "@bad", "width": 1.2, "dash": "dash"},
        },
    ]
