"""The pieces an inspection page is set from: bars in tables, ranges, durations. Static, so that they show without a script."""

from __future__ import annotations

import numpy as np

from jala_ray.reports.kit.html import Html, el
from jala_ray.reports.kit.widgets import number
from jala_ray.types import Hand

HAND_COLORS = {Hand.LEFT: "@c3", Hand.RIGHT: "@c2"}
"""Of charts and ranges; near those of the drawn skeletons."""
BINS = 60
BEYOND = 0.5
"""Percent of values at either end of a histogram that its outermost bars hold together."""
RANGE_WIDTH, RANGE_HEIGHT = 108, 14


def css_color(name: str) -> str:
    return f"var(--{name.removeprefix('@')})"


def duration(seconds: float) -> Html:
    """Seconds, minutes or hours, whichever reads best; the hours as a tooltip."""
    for size, unit, limit in ((1, "s", 120), (60, "min", 7200), (3600, "h", np.inf)):
        if seconds < limit:
            return el("span", f"{number_text(seconds / size)} {unit}", title=f"{seconds / 3600!r} h")
    raise AssertionError(seconds)


def number_text(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def percent(value: float | None) -> Html:
    """A share of one; shares between 0 and 0.1 % do not read as none."""
    if value is None:
        return el("span", "n/a")
    shown = "< 0.1%" if 0 < value < 0.001 else "> 99.9%" if 0.999 < value < 1 else f"{value:.1%}"
    return el("span", shown, title=repr(value))


def bar(value: float | None, color: str = "@c1", width: str = "7rem") -> Html:
    """A share of one as a bar."""
    filled = (
        f"display:block;height:100%;width:{100 * (value or 0):.2f}%;background:{css_color(color)};border-radius:3px"
    )
    frame = f"display:inline-block;vertical-align:middle;width:{width};height:.55rem;border-radius:3px;background:var(--soft)"
    return el("span", el("span", style=filled), style=frame)


def barred(value: float | None, color: str = "@c1", width: str = "3.2rem") -> Html:
    """A bar with its percentage after it."""
    text = el("span", percent(value), style="display:inline-block;min-width:3.8rem;text-align:right")
    return el("span", bar(value, color, width), text, style="white-space:nowrap")


def small(*children: object) -> Html:
    return el("span", *children, style="color:var(--muted);font-size:.8rem")


def titled(title: str, content: object, note: str = "") -> Html:
    caption = el("figcaption", el("h3", title), el("span", note, class_="note") if note else None)
    return el("figure", caption, content)


def ranges(values: np.ndarray, low: float, high: float, color: str, digits: int) -> Html:
    """1st to 99th percentile as a thin bar, quartiles as a thick one, the median as a tick, on an axis from `low` to `high`."""
    if not len(values):
        return small("no values")
    p1, p25, p50, p75, p99 = np.percentile(values, [1, 25, 50, 75, 99])
    span = max(high - low, 1e-9)

    def at(value: float) -> float:
        return round(float((value - low) / span * (RANGE_WIDTH - 4) + 2), 2)

    def box(a: float, b: float, height: float, opacity: float) -> Html:
        y = (RANGE_HEIGHT - height) / 2
        style = f"fill:{css_color(color)};opacity:{opacity}"
        return el("rect", x=at(a), y=y, width=round(max(at(b) - at(a), 1), 2), height=height, rx=1, style=style)

    def tick(value: float, height: float, ink: str) -> Html:
        y = (RANGE_HEIGHT - height) / 2
        return el("rect", x=round(at(value) - 0.75, 2), y=y, width=1.5, height=height, style=f"fill:{ink}")

    axis = el("rect", x=0, y=RANGE_HEIGHT / 2 - 0.5, width=RANGE_WIDTH, height=1, style="fill:var(--line)")
    zero = tick(0, RANGE_HEIGHT, "var(--line)") if low < 0 < high else None
    marks = [axis, zero, box(p1, p99, 4, 0.45), box(p25, p75, 8, 1), tick(p50, RANGE_HEIGHT, "var(--ink)")]
    drawing = el("svg", marks, width=RANGE_WIDTH, height=RANGE_HEIGHT, style="display:block", aria_hidden="true")
    rounded = (round(float(value), digits) + 0.0 for value in (p1, p50, p99))  # + 0.0: no minus before a zero
    text = " · ".join(f"{value:.{digits}f}".replace("-", "−") for value in rounded)
    title = f"1 %: {p1:.4g}, median {p50:.4g}, 99 %: {p99:.4g}, largest {values.max():.4g}, smallest {values.min():.4g}"
    return el("span", drawing, small(text), title=title, style="display:inline-block;text-align:center")


def histogram(values: dict[str, tuple[np.ndarray, str]], unit: str) -> dict:
    """{name: (values, colour)} as steps on common bins, each name's bars adding up to one. A plotly figure."""
    every = np.concatenate([found for found, _ in values.values()])
    low, high = np.percentile(every, [BEYOND, 100 - BEYOND])
    pad = max(0.06 * (high - low), 1e-3)
    edges = np.linspace(low - pad, high + pad, BINS + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    traces = []
    for name, (found, color) in values.items():
        if not len(found):
            continue
        counts = np.histogram(np.clip(found, edges[0], edges[-1]), edges)[0] / len(found)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": [float(f"{x:.4g}") for x in middle],
                "y": [float(f"{y:.4g}") for y in counts],
                "line": {"color": color, "width": 1.6, "shape": "hvh"},
                "fill": "tozeroy",
            }
        )
    layout = {
        "xaxis": {"title": {"text": unit}},
        "yaxis": {"tickformat": ".0%", "rangemode": "tozero"},
        "showlegend": len(traces) > 1,
    }
    return {"data": traces, "layout": layout, "loggable": False}


def count(value: int) -> Html:
    return number(int(value))
