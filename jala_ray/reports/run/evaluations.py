"""The report's section of evaluators that ran while the run trained (`train.evaluate`): `eval/NAME/...` of its rows, whatever they are."""

from __future__ import annotations

import re

from jala_ray.hands.metrics import METRICS
from jala_ray.reports.kit.figures import Chart, Charts, Line, points
from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.widgets import DOMAIN_COLORS, DOMAIN_NAMES, about, number, plain, table
from jala_ray.reports.run.folder import RunFolder

KEY = re.compile(rf"eval/([^/]+)/(?:({'|'.join(DOMAIN_NAMES)})/)?(.+)")
FAILED = "failed"


def section(run: RunFolder, charts: Charts) -> Html | None:
    """A chart for every figure of each evaluator, domains together, and what failed; None for a run without evaluators."""
    found: dict[str, dict[str, list[str | None]]] = {}
    for key in dict.fromkeys(key for row in run.metrics for key in row):
        if match := KEY.fullmatch(key):
            name, domain, figure = match.groups()
            found.setdefault(name, {}).setdefault(figure, []).append(domain)
    if not found:
        return None
    text = "Measured while the run trained, with its weights at that step; none of it changes the training."
    return join(about(text), *(_evaluator(run, charts, name, figures) for name, figures in found.items()))


def _evaluator(run: RunFolder, charts: Charts, name: str, figures: dict[str, list[str | None]]) -> Html:
    drawn, rows = [], []
    for figure in (figure for figure in figures if figure != FAILED):
        lines = [_line(run, name, domain, figure) for domain in figures[figure]]
        title = METRICS[figure].heading if figure in METRICS else figure
        drawn.append(Chart(title, lines, resumes=charts.resumes))
        rows += [
            [title, line.name, number(line.points[-1][1]), number(line.points[-1][0])] for line in lines if line.points
        ]
    last = table(("Last evaluation", "Of", "Value", "Step"), rows, numbers=(2, 3)) if rows else None
    return join(el("h3", name), charts.grid(drawn), last, _failures(run, f"eval/{name}/{FAILED}"))


def _line(run: RunFolder, name: str, domain: str | None, figure: str) -> Line:
    key = f"eval/{name}/{figure}" if domain is None else f"eval/{name}/{domain}/{figure}"
    name, color = ("All", "@c4") if domain is None else (DOMAIN_NAMES[domain], DOMAIN_COLORS[domain])
    return Line(name, points(run.metrics, key), color, markers=True)


def _failures(run: RunFolder, key: str) -> Html | None:
    """The last reason, and how often."""
    steps = [row["step"] for row in run.metrics if row.get(key)]
    if not steps:
        return None
    why = next(row[key] for row in reversed(run.metrics) if row.get(key))
    return about(f"It failed at {len(steps):,} steps, the last one {steps[-1]:,}: ", el("code", plain(why)))
