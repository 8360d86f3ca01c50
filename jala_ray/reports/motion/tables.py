"""The numbers of a motion evaluation on a page: tables by row and domain, breakdowns, error over the horizon.

`PageScores` is what the page is given: plain data, each metric in its unit, None where a number is not defined.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import NotRequired, TypedDict, cast

from jala_ray.evaluation.scores import PELA_TABLE_1, units
from jala_ray.hands.metrics import METRICS
from jala_ray.reports.kit.figures import Charts, bars
from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.widgets import DOMAIN_NAMES, about, absent
from jala_ray.types import DOMAINS, UserError


class Cell(TypedDict):
    """Mean over clips with its 95 % interval, in the metric's unit."""

    mean: float | None
    low: float | None
    high: float | None
    clips: int


class Second(TypedDict):
    """The error of one second of motion, counted from 1; its 95 % interval, if given, is drawn for models."""

    second: int
    mpjpe: float | None
    clips: int
    low: NotRequired[float | None]
    high: NotRequired[float | None]


class Pick(TypedDict):
    """A clip to look at."""

    kind: str
    row: str
    clip_id: str
    domain: str
    scores: Mapping[str, float | None]


Line = Mapping[str, Cell]
"""Metric -> cell."""
Part = tuple[object, Sequence[Html], str | None]
"""Title, rows and class of a part of a table."""


class PageScores(TypedDict):
    """`rows` in order, those in `models` being models; the others bounds and trivial baselines."""

    metrics: Sequence[str]
    rows: Sequence[str]
    models: Sequence[str]
    table: Mapping[str, Mapping[str, Line]]
    """Row -> domain -> metric -> cell."""
    by_source: Mapping[str, Mapping[str, Line]]
    """Source -> row -> metric -> cell, shown in this order; the two below alike."""
    by_task: Mapping[str, Mapping[str, Line]]
    by_hand: Mapping[str, Mapping[str, Line]]
    horizon: Mapping[str, Mapping[str, Sequence[Second]]]
    """Domain -> row -> seconds."""
    picked: Sequence[Pick]


ROW_NOTES = {
    "floor": "the tokenizer's reconstruction of the truth",
    "hold_first": "the true first pose, held",
    "mean_motion": "the training split's mean",
}
FLOOR = "floor"
"""Begins the name of a bound, of which there may be one a tokenizer."""
MIN_CLIPS = 10
"""Resampling fewer clips than this gives an interval that is too narrow: it is not shown."""
PAPER_TITLE = "PELA Table 1, another data set: not comparable in absolute numbers"
REFERENCES_TITLE = "Bound and trivial baselines"
MODEL_DASHES = ("solid", "dash", "dot", "dashdot")
REFERENCE_DASHES = ("dot", "dash", "dashdot", "longdash")


def check_scores(scores: Mapping[str, object]) -> PageScores:
    """The same, known to be complete. Raises UserError for keys that are missing or unknown, and models that are no rows."""
    wanted = PageScores.__annotations__.keys()
    if scores.keys() != wanted:
        raise UserError("scores", sorted(scores), f"the keys {', '.join(wanted)}")
    known = cast("PageScores", scores)
    strange = sorted(set(known["models"]) - set(known["rows"]))
    if strange:
        raise UserError("scores.models", strange, f"names of rows: {list(known['rows'])}")
    return known


def references(scores: PageScores) -> list[str]:
    """The rows that are no models."""
    return [row for row in scores["rows"] if row not in scores["models"]]


def domains(scores: PageScores) -> list[str]:
    """Those with a number, lab first."""
    found = {name for lines in scores["table"].values() for name in lines}
    return in_order(found, DOMAINS)


def in_order(names: set[str] | Mapping[str, object], known: Sequence[str]) -> list[str]:
    """Known names in their order, then the others by name."""
    return [name for name in known if name in names] + sorted(name for name in names if name not in known)


def label(text: str) -> str:
    """Text for a chart: plotly reads a subset of HTML, and a name is no markup."""
    return html.escape(text, quote=False)


def clips(count: int) -> str:
    return f"{count:,} clip{'' if count == 1 else 's'}"


def label_of(metric: str) -> str:
    """Of a metric that an older version may have known under a key that is gone."""
    return METRICS[metric].label if metric in METRICS else metric


def heading_of(metric: str) -> str:
    """The label, with the unit where it is not cm."""
    return METRICS[metric].heading if metric in METRICS else metric


def sign_of(metric: str) -> int:
    """1 where lower is better, else -1."""
    return METRICS[metric].sign if metric in METRICS else 1


def unit_of(metric: str) -> str:
    return METRICS[metric].unit if metric in METRICS else "cm"


def scored(scores: PageScores, domain: str) -> int:
    """Clips of a domain behind the numbers of the table."""
    cells = (c for lines in scores["table"].values() for c in lines.get(domain, {}).values())
    return max((c["clips"] for c in cells), default=0)


def cell(found: Cell | None, best: bool = False, unit: str = "cm") -> Html:
    """A mean with its interval below it."""
    if found is None or found["mean"] is None:
        return el("td", "n/a", class_="number none")
    shown = limits(found)
    between = el("span", f"{shown[0]:.2f} – {shown[1]:.2f}", class_="interval") if shown else None
    title = f"{found['mean']!r} {unit}, {clips(found['clips'])}"
    return el(
        "td", el("span", f"{found['mean']:,.2f}", title=title), between, class_="number best" if best else "number"
    )


def limits(found: Cell | Second) -> tuple[float, float] | None:
    """The interval to show, None where there is none or it is of too few clips."""
    low, high = found.get("low"), found.get("high")
    return None if low is None or high is None or found["clips"] < MIN_CLIPS else (low, high)


def few_clips(lines: Iterable[Line]) -> str:
    """The sentence that tells why an interval is missing; empty where none is."""
    cells = [c for line in lines for c in line.values()]
    hidden = any(c["low"] is not None and limits(c) is None for c in cells)
    return f" Means of fewer than {MIN_CLIPS} clips have no interval: it would be too narrow." if hidden else ""


def _note(row: str) -> str | None:
    return ROW_NOTES.get(FLOOR if row.startswith(FLOOR) else row)


def named(row: str, note: str | None = None) -> Html:
    return el("th", row, el("span", note, class_="interval") if note else None, scope="row", class_="row")


def headline(scores: PageScores) -> Html:
    """Rows x (domain x metric): models, references, then the paper's."""
    shown = domains(scores)
    if not scores["rows"] or not shown:
        return absent("No clip was scored.")
    metrics = scores["metrics"]
    over = [f"{DOMAIN_NAMES.get(domain, domain)}, {clips(scored(scores, domain))}" for domain in shown]
    columns = [(domain, metric) for domain in shown for metric in metrics]
    leaders = leading({c: {m: look_up(scores["table"], m, *c) for m in scores["models"]} for c in columns})

    def line(row: str) -> Html:
        cells = [cell(look_up(scores["table"], row, *c), leaders.get(c) == row, unit_of(c[1])) for c in columns]
        return el("tr", named(row, _note(row)), cells)

    printed = []
    for name, values in PELA_TABLE_1.items():
        by_domain: Mapping[str, Mapping[str, float]] = {domain: values[domain] for domain in DOMAINS}
        numbers = [by_domain.get(domain, {}).get(metric) for domain, metric in columns]
        printed.append(
            el("tr", named(name), [el("td", "" if n is None else f"{n:.2f}", class_="number") for n in numbers])
        )
    parts: list[Part] = [
        ("Models", [line(row) for row in scores["models"]], None),
        (REFERENCES_TITLE, [line(row) for row in references(scores)], None),
        (PAPER_TITLE, printed, "elsewhere"),
    ]
    text = f"Means over clips {units()}, {_better()}; below each its 95 % interval from resampled clips. " + " ".join(
        f"{metric.label}: {metric.text}." for metric in METRICS.values()
    )
    few = few_clips(line for lines in scores["table"].values() for line in lines.values())
    return join(about(text, few), sheet(over, [heading_of(m) for m in metrics], parts))


def _better() -> str:
    higher = [metric.label for metric in METRICS.values() if metric.better == "higher"]
    return "lower is better" + (f", of {' and '.join(higher)} higher" if higher else "")


def sheet(over: Sequence[str], heads: Sequence[str], parts: Sequence[Part]) -> Html:
    """A table of groups of columns, each with all `heads` (none in `over`: the heads alone), and of parts of rows."""
    columns = len(heads) * max(1, len(over))
    top = [el("th", name, colspan=len(heads), scope="colgroup", class_="group") for name in over]
    below = [el("th", head, class_="number", scope="col") for _ in over or ("",) for head in heads]
    bodies = [
        el("tbody", el("tr", el("th", title, colspan=1 + columns, scope="rowgroup", class_="part")), rows, class_=kind)
        for title, rows, kind in parts
        if rows
    ]
    lines = [el("tr", el("td"), top) if top else None, el("tr", el("td"), below)]
    return el("div", el("table", el("thead", lines), bodies, class_="scores"), class_="scroll")


def leading(columns: Mapping[tuple[str, str], Mapping[str, Cell | None]]) -> dict[tuple[str, str], str]:
    """Column (.., metric) -> the model with the best mean, where there are two to compare."""
    found = {}
    for column, cells in columns.items():
        means = {row: c["mean"] for row, c in cells.items() if c is not None and c["mean"] is not None}
        if len(means) > 1:
            found[column] = min(means, key=lambda row: sign_of(column[1]) * means[row])
    return found


def look_up(table: Mapping[str, Mapping[str, Line]], first: str, second: str, metric: str) -> Cell | None:
    """A cell by its two names and its metric; None where the table has none."""
    return table.get(first, {}).get(second, {}).get(metric)


def breakdown(scores: PageScores, charts: Charts) -> Html:
    """By source, by task type and by hand."""
    groups = (
        ("By source", scores["by_source"]),
        ("By task type", scores["by_task"]),
        ("By hand", scores["by_hand"]),
    )
    if not any(found for _, found in groups):
        return absent("No clip was scored.")
    means = {
        label(row): {
            label(source): value
            for source in scores["by_source"]
            if (found := look_up(scores["by_source"], source, row, "mpjpe")) is not None
            and (value := found["mean"]) is not None
        }
        for row in scores["models"]
    }
    drawn = None
    if len(scores["by_source"]) > 1 and any(means.values()):
        drawn = el("div", charts.place("MPJPE by source", "cm, models", bars(means, "source")), class_="charts")
    few = few_clips(line for _, found in groups for lines in found.values() for line in lines.values())
    text = (
        f"Means over clips {units()} with their 95 % intervals. Where there are several models, the best mean is bold."
    )
    return join(
        about(text, few),
        drawn,
        [join(el("h3", title, class_="above"), _groups(scores, found)) for title, found in groups if found],
    )


def _groups(scores: PageScores, found: Mapping[str, Mapping[str, Line]]) -> Html:
    metrics, parts = scores["metrics"], []
    for name in found:
        leaders = leading({(name, m): {row: look_up(found, name, row, m) for row in scores["models"]} for m in metrics})
        rows = [
            el(
                "tr",
                named(row),
                [cell(look_up(found, name, row, m), leaders.get((name, m)) == row, unit_of(m)) for m in metrics],
            )
            for row in scores["rows"]
            if row in found[name]
        ]
        most = max((c["clips"] for line in found[name].values() for c in line.values()), default=0)
        parts.append((join(name, el("span", clips(most), class_="count")), rows, None))
    return sheet((), [heading_of(metric) for metric in metrics], parts)


def horizon(scores: PageScores, charts: Charts) -> Html:
    """MPJPE of every second of motion, a chart per domain."""
    placed = []
    for domain in in_order(scores["horizon"], DOMAINS):
        lines = {row: scores["horizon"][domain][row] for row in scores["rows"] if scores["horizon"][domain].get(row)}
        if lines:
            title = f"MPJPE over time, {DOMAIN_NAMES.get(domain, domain)}"
            placed.append(charts.place(title, "cm", horizon_figure(scores, lines)))
    if not placed:
        return absent("No second of motion was scored.")
    text = (
        "The error of each second of model time by itself. Fewer clips reach the later seconds (n below the axis), "
        f"so a line is not the course of one set of clips. Whiskers are 95 % intervals of models, of {MIN_CLIPS} clips or more."
    )
    return join(about(text), el("div", placed, class_="charts"))


def horizon_figure(scores: PageScores, lines: Mapping[str, Sequence[Second]]) -> dict:
    """A plotly figure: one line per row, the number of clips below every second."""
    traces = []
    for row, points in lines.items():
        trace = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": label(row),
            "x": [p["second"] for p in points],
            "y": [_short(p["mpjpe"]) for p in points],
            "customdata": [p["clips"] for p in points],
            "hovertemplate": "%{y:.2f} cm, %{customdata} clips",
            "line": line_style(scores, row),
            "marker": {"size": 5},
        }
        if row in scores["models"]:
            trace["error_y"] = _whiskers(points)
        traces.append(trace)
    counts: dict[int, int] = {}
    for points in lines.values():
        for point in points:
            counts[point["second"]] = max(counts.get(point["second"], 0), point["clips"])
    axis = {
        "title": {"text": "second of motion"},
        "tickmode": "array",
        "tickvals": sorted(counts),
        "ticktext": [f"{second}<br>n={counts[second]}" for second in sorted(counts)],
    }
    layout = {"xaxis": axis, "yaxis": {"rangemode": "tozero"}, "showlegend": len(lines) > 1}
    return {"data": traces, "layout": layout, "loggable": False}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _whiskers(points: Sequence[Second]) -> dict:
    """How far the intervals reach up and down; None where there are none."""
    up, down = [], []
    for point in points:
        mean, shown = point["mpjpe"], limits(point)
        if mean is None or shown is None:
            up.append(None)
            down.append(None)
        else:
            up.append(_short(shown[1] - mean))
            down.append(_short(mean - shown[0]))
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1, "width": 3}


def line_style(scores: PageScores, row: str) -> dict:
    """Models in colours, the others grey and broken."""
    if row in scores["models"]:
        place = list(scores["models"]).index(row)
        return {"color": f"@c{place % 4 + 1}", "width": 2, "dash": MODEL_DASHES[place // 4 % len(MODEL_DASHES)]}
    place = references(scores).index(row)
    return {"color": "@muted", "width": 1.5, "dash": REFERENCE_DASHES[place % len(REFERENCE_DASHES)]}
