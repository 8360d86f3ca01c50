"""The page of a sweep: one HTML file that needs no network, from `outcome.results` alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jala_ray.reports.kit.figures import Charts
from jala_ray.reports.kit.html import Html, el, join, page
from jala_ray.reports.kit.widgets import about, absent, badge, clock, number, table, tile, tree
from jala_ray.sweeps.domains import Choice, Domain

COLORS = {"done": "@c1", "stopped": "@c3", "failed": "@bad", "open": "@muted"}
STATES = {
    "done": "to its end",
    "stopped": "stopped by halving",
    "failed": "failed",
    "open": "not finished",
}
TREND_POINTS, TREND_LEAST = 60, 5
MAX_CURVES = 200
"""Learning curves drawn: the best trials'."""


def write_report(folder: str, found: Mapping[str, Any], domains: Mapping[str, Domain]) -> str:
    """The document. `found` is what `outcome.results` gives."""
    charts = Charts()
    content = [
        ("trials", "Trials", _trials(found)),
        ("parallel", "Settings side by side", _parallel(found, domains, charts)),
        ("settings", "Metric against each setting", _against(found, domains, charts)),
        ("curves", "Learning curves", _curves(found, charts)),
        ("cost", "Cost", _cost(found, charts)),
        ("facts", "Facts", tree({k: found[k] for k in ("space", "search", "halving", "concurrent", "synchronous")})),
    ]
    name = folder.rstrip("/").rpartition("/")[2]
    failed = sum(row["state"] == "failed" for row in found["trials"])
    title = el("div", el("h1", name), badge(f"{failed} failed", "warn") if failed else None, class_="title")
    lede = f"{folder} · {found['search']['method']} over {', '.join(found['space'])}"
    header = join(
        el("p", "Sweep", class_="kicker"), title, el("p", lede, class_="lede"), el("div", _tiles(found), class_="tiles")
    )
    return page(f"{name} · Sweep", header, content, charts.figures)


def _main(found: Mapping[str, Any]) -> tuple[str, str]:
    """Name and label of the main metric."""
    name = next(iter(found["metrics"]))
    return name, found["metrics"][name]["label"]


def _tiles(found: Mapping[str, Any]) -> list[Html]:
    rows = found["trials"]
    count = {state: sum(row["state"] == state for row in rows) for state in STATES}
    asked = found["search"]["trials"]
    told = ", ".join(f"{n} {STATES[state]}" for state, n in count.items() if n)
    tiles = [tile("Trials", number(len(rows)), f"of {asked}: {told}")]
    best = next((row for row in rows if row["number"] in found["best"]), None)
    for name, facts in found["metrics"].items():
        way = "lower is better" if facts["mode"] == "min" else "higher is better"
        tiles.append(tile(f"Best {facts['label']}", number(best and best["metrics"][name]), way))
    if best is not None:
        tiles += [tile(key.rpartition(".")[2], _shown(value), key) for key, value in best["values"].items()]
    gpus = found["gpu_hours"]
    tiles.append(tile("GPU-hours" if gpus else "Hours of trials", number(gpus or found["hours"], 3), "all trials"))
    return tiles


def _shown(value: object) -> Html:
    return number(value) if isinstance(value, (int, float)) else el("span", str(value))


def _trials(found: Mapping[str, Any]) -> Html:
    keys, metrics = list(found["space"]), list(found["metrics"])
    head = ["trial", *(key.rpartition(".")[2] for key in keys), *metrics, "step", "time", "GPU-hours", "state"]
    body = []
    for row in found["trials"]:
        best = badge("best", "good") if row["number"] in found["best"] else None
        state = [STATES[row["state"]], None if row["reason"] is None else f": {row['reason']}"]
        body.append(
            [
                join(row["number"], " ", best),
                *(_shown(row["values"][key]) for key in keys),
                *(number(row["metrics"][name]) for name in metrics),
                number(row["step"]),
                clock(row["seconds"]),
                number(row["gpu_hours"], 3),
                join(*state),
            ]
        )
    several = "The best are those that no other beats in every metric. " if len(metrics) > 1 else ""
    text = f"Best first: trials that ran to their end, then by how far they came. {several}best.json is a preset to train with."
    return join(about(text), table(head, body, numbers=range(1, len(head) - 1)))


def _scored(found: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Trials to their end with a metric: stopped ones have one too, but of another step."""
    return [row for row in found["trials"] if row["state"] == "done" and row["metrics"][name] is not None]


def _parallel(found: Mapping[str, Any], domains: Mapping[str, Domain], charts: Charts) -> Html:
    name, label = _main(found)
    rows = [row for row in found["trials"] if row["metrics"][name] is not None]
    if not rows:
        return absent("No trial has a metric yet.")
    dimensions = [
        {
            "label": key.rpartition(".")[2],
            "values": [domain.unit(row["values"][key]) for row in rows],
            "range": [0, 1],
            **_ticks(domain),
        }
        for key, domain in domains.items()
    ]
    scores = [row["metrics"][name] for row in rows]
    dimensions.append({"label": "steps", "values": [row["step"] for row in rows]})
    dimensions.append({"label": name, "values": scores})
    figure = {
        "data": [
            {
                "type": "parcoords",
                "line": {"color": scores, "colorscale": "Viridis", "showscale": True},
                "dimensions": dimensions,
            }
        ],
        "layout": {"margin": {"l": 70, "r": 60, "t": 46, "b": 24}},
        "loggable": False,
    }
    note = "A line is a trial, stopped ones with the value they had reached. Drag along an axis to choose."
    return el("div", charts.place(label, note, figure), class_="charts tall")


def _ticks(domain: Domain) -> dict[str, Any]:
    quarters = (0.0, 0.25, 0.5, 0.75, 1.0)
    values = domain.values if isinstance(domain, Choice) else sorted({domain.at(u) for u in quarters})
    return {"tickvals": [domain.unit(v) for v in values], "ticktext": [str(v) for v in values]}


def _against(found: Mapping[str, Any], domains: Mapping[str, Domain], charts: Charts) -> Html:
    numbers, label = compared(found)
    if not numbers:
        return absent("No trial has a number to compare by yet.")
    rows = [row for row in found["trials"] if row["number"] in numbers]
    placed = [
        charts.place(key, "", _scatter(found, rows, numbers, key, domain, label)) for key, domain in domains.items()
    ]
    text = f"{label}. The line is a parabola through them on the setting's own scale, where there are {TREND_LEAST} or more."
    return join(about(text), el("div", placed, class_="charts"))


def compared(found: Mapping[str, Any]) -> tuple[dict[int, float], str]:
    """{trial: value} and what it is, to set trials side by side: the metric of those that ran to their end where they are enough, else
    what was reported at the last step that enough trials came to. Values of different steps would not compare.
    """
    name, label = _main(found)
    ended = {row["number"]: row["metrics"][name] for row in _scored(found, name)}
    if len(ended) >= TREND_LEAST or not found["halving"]:
        return ended, f"{label}, trials that ran to their end"
    curves = {row["number"]: dict(map(tuple, row["curve"])) for row in found["trials"]}
    reached: dict[int, int] = {}
    for curve in curves.values():
        for step in curve:
            reached[step] = reached.get(step, 0) + 1
    least = min(TREND_LEAST, max(reached.values(), default=0))
    step = max((step for step, count in reached.items() if count >= least), default=None)
    if step is None:
        return {}, label
    values = {number: curve[step] for number, curve in curves.items() if step in curve}
    return values, f"{found['halving']['metric']} at step {step}, to which {len(values)} trials came"


def _scatter(
    found: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    numbers: Mapping[int, float],
    key: str,
    domain: Domain,
    label: str,
) -> dict[str, Any]:
    x = [domain.unit(row["values"][key]) for row in rows]
    y = [numbers[row["number"]] for row in rows]
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": x,
        "y": y,
        "text": [f"trial {row['number']}: {row['values'][key]}" for row in rows],
        "hovertemplate": "%{text}<br>%{y:.4f}<extra></extra>",
        "marker": {"color": ["@c2" if row["number"] in found["best"] else "@c1" for row in rows], "size": 8},
    }
    fitted = None if isinstance(domain, Choice) else trend(x, y)
    line = [] if fitted is None else [{"type": "scatter", "mode": "lines", "x": fitted[0], "y": fitted[1]}]
    line = [{**one, "line": {"color": "@c3", "width": 2}, "hoverinfo": "skip"} for one in line]
    axis = {"title": {"text": key.rpartition(".")[2]}, "range": [-0.04, 1.04], **_ticks(domain)}
    layout = {"xaxis": axis, "showlegend": False, "hovermode": "closest"}
    return {"data": [points, *line], "layout": layout, "loggable": False}


def trend(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]] | None:
    """A least-squares parabola over the range of x; None for too few points, or fewer than three places."""
    if len(x) < TREND_LEAST or len({round(v, 6) for v in x}) < 3:
        return None
    fitted = np.polynomial.Polynomial.fit(x, y, 2)
    places = np.linspace(min(x), max(x), TREND_POINTS)
    return places.tolist(), fitted(places).tolist()


def _curves(found: Mapping[str, Any], charts: Charts) -> Html:
    rows = [row for row in found["trials"] if row["curve"]]
    if not rows:
        return absent("No trial has reported yet.")
    data = []
    for row in rows[:MAX_CURVES]:
        best, stopped = row["number"] in found["best"], row["state"] == "stopped"
        steps, values = zip(*row["curve"], strict=True)
        color = "@c2" if best else COLORS[row["state"]]
        end = {"size": 10, "symbol": "x"} if stopped else {"size": 5, "symbol": "circle"}
        trace = {
            "type": "scatter",
            "mode": "lines+markers",
            "x": list(steps),
            "y": list(values),
            "name": f"trial {row['number']}",
            "line": {"color": color, "width": 3 if best else 1.4},
            "marker": {
                "size": [*[5] * (len(steps) - 1), end["size"]],
                "symbol": [*["circle"] * (len(steps) - 1), end["symbol"]],
            },
            "hovertemplate": f"trial {row['number']}<br>%{{y:.4f}} at %{{x}}<extra></extra>",
        }
        data.append(trace)
    halving = found["halving"]
    rungs = halving["rungs"] if halving else []
    dotted = {"color": "@muted", "width": 1, "dash": "dot"}
    across = {"type": "line", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "line": dotted}
    shapes = [{**across, "x0": rung, "x1": rung} for rung in rungs]
    layout = {"showlegend": False, "hovermode": "closest", "shapes": shapes}
    metric = halving["metric"] if halving else _main(found)[0]
    stopped = [row for row in found["trials"] if row["state"] == "stopped"]
    where = [[f"step {rung}", sum(1 for row in stopped if _rung_of(row["step"], rungs) == rung)] for rung in rungs]
    note = "Dotted lines are rungs; a cross is where halving stopped a trial; the best is drawn thick."
    kept = (
        table(["rung", "trials stopped there"], where, numbers=(1,)) if rungs else absent("Every trial ran to its end.")
    )
    placed = charts.place(metric, note, {"data": data, "layout": layout, "loggable": False})
    return join(el("div", placed, class_="charts tall"), kept)


def _rung_of(step: int, rungs: Sequence[int]) -> int | None:
    return next((rung for rung in reversed(rungs) if rung <= step), None)


def _cost(found: Mapping[str, Any], charts: Charts) -> Html:
    by_gpu = found["gpu_hours"] > 0
    rows = sorted(found["trials"], key=lambda row: row["number"])
    data = []
    for state, name in STATES.items():
        own = [row for row in rows if row["state"] == state]
        if own:
            cost = [row["gpu_hours"] if by_gpu else row["seconds"] / 60 for row in own]
            data.append(
                {
                    "type": "bar",
                    "name": name,
                    "x": [row["number"] for row in own],
                    "y": cost,
                    "marker": {"color": COLORS[state]},
                }
            )
    unit = "GPU-hours" if by_gpu else "minutes of wall clock"
    layout = {
        "showlegend": len(data) > 1,
        "xaxis": {"title": {"text": "trial"}},
        "yaxis": {"title": {"text": unit}, "rangemode": "tozero"},
    }
    saved = _saved(found)
    text = [f"{unit}, starting and ending included. "]
    if saved is not None:
        text.append(f"Halving saved {saved:.0%} of the steps that these trials would have taken to their end.")
    return join(
        about(*text), charts.place("Cost of each trial", "", {"data": data, "layout": layout, "loggable": False})
    )


def _saved(found: Mapping[str, Any]) -> float | None:
    ended = [row for row in found["trials"] if row["state"] in ("done", "stopped")]
    full = max((row["step"] for row in ended if row["state"] == "done"), default=0)
    if found["halving"] is None or not full:
        return None
    share = 1 - sum(row["step"] for row in ended) / (full * len(ended))
    return share if math.isfinite(share) else None
