"""The small pieces a report is set from: numbers, tiles, tables, trees of settings."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence

from jala_ray.domains import DOMAIN_KINDS
from jala_ray.reports.kit.html import Html, el, join

DOMAIN_NAMES = {name: kind.title for name, kind in DOMAIN_KINDS.items()}
"""Of every domain, as pages call it."""
DOMAIN_COLORS = dict(zip(DOMAIN_NAMES, itertools.cycle(("@c1", "@c2", "@c3")), strict=False))


def number(value: object, digits: int = 4, unit: str = "") -> Html:
    """A number to `digits` significant digits with its full value as a tooltip; "n/a" for None."""
    if value is None:
        return el("span", "n/a")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return el("span", value)
    if isinstance(value, int):
        shown = f"{value:,}"
    elif not math.isfinite(value):
        shown = str(value)
    else:
        shown = f"{value:,.{max(0, digits - 1 - exponent(value))}f}" if 1e-4 <= abs(value) < 1e7 else f"{value:.3g}"
    return el("span", shown + unit, title=repr(value))


def exponent(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def percent(value: float | None) -> Html:
    return number(None) if value is None else el("span", f"{value:.1%}", title=repr(value))


def badge(text: str, kind: str = "") -> Html:
    return el("span", text, class_=f"badge {kind}".strip())


def about(*text: object) -> Html:
    return el("p", *text, class_="about")


def absent(*text: object) -> Html:
    return el("p", *text, class_="absent")


def tile(name: str, value: object, under: object = None, mark: Html | None = None) -> Html:
    return el(
        "div",
        el("div", name, class_="name"),
        el("div", value, mark, class_="value"),
        el("div", under, class_="under") if under is not None else None,
        class_="tile",
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[int] = ()) -> Html:
    """A table; columns in `numbers` are set right."""

    def kind(column: int) -> str | None:
        return "number" if column in numbers else None

    titles = el("tr", [el("th", title, class_=kind(i), scope="col") for i, title in enumerate(head)])
    body = [el("tr", [el("td", cell, class_=kind(i) or "long") for i, cell in enumerate(row)]) for row in rows]
    return el("div", el("table", el("thead", titles), el("tbody", body)), class_="scroll")


def tree(values: dict) -> Html:
    """Nested settings: leaves as a list of pairs, branches folded."""
    leaves = {key: value for key, value in values.items() if not (isinstance(value, dict) and value)}
    branches = {key: value for key, value in values.items() if key not in leaves}
    pairs = [[el("dt", key), el("dd", plain(value))] for key, value in leaves.items()]
    folded = [
        el("details", el("summary", key, el("span", count_leaves(value), class_="count")), tree(value))
        for key, value in branches.items()
    ]
    return join(el("dl", pairs) if pairs else None, folded)


def count_leaves(values: dict) -> int:
    return sum(count_leaves(v) if isinstance(v, dict) and v else 1 for v in values.values())


def plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def clock(seconds: float | None) -> str:
    if seconds is None:
        return "n/a"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
