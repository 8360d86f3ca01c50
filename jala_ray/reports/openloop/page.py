"""The page of a policy beside recorded episodes: one HTML file that needs no network. Verdicts, errors, curves, pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from jala_ray.policy.openloop.records import POLICY, EpisodeRecord
from jala_ray.policy.openloop.scores import ROWS
from jala_ray.policy.openloop.smoothness import executed
from jala_ray.policy.openloop.verdicts import HELD, LAST, MEAN
from jala_ray.reports.kit.figures import Chart, Charts, Line
from jala_ray.reports.kit.findings import Finding, counted, warning_list, worst_first
from jala_ray.reports.kit.html import Html, el, join, page
from jala_ray.reports.kit.widgets import about, absent, badge, number, table, tile, tree

Figures = Mapping[str, Any]
SIMPLE = (MEAN, LAST, HELD)
"""Trivial rows that are drawn, and that a dimension should be better than."""
MOST_CURVES = 16
"""Dimensions drawn of an episode."""
FEW = 10
"""Episodes below which an interval is to be read with care."""
COLORS = ("@c1", "@c2", "@c3", "@c4")
REMEDIES = {
    "looks": "It will fail where the scene varies. Check the cameras' names and order, and whether the demonstrations vary the scene.",
    "moves": "Check the actions' signals, their rate and statistics, and idle frames at the episodes' ends (data.trim_idle).",
    "listens": "Instructions of several tasks must differ, and the same scene must be shown with several of them.",
    "feels": "Check the state's signals; a policy that sees may not need them.",
    "in time": "Actions and pictures may be recorded at different moments, or the policy repeats what it was.",
    "meets": "Ask more often, or execute a chunk while the next is computed (serving.overlap).",
}


def openloop_page(figures: Figures, shown: Sequence[EpisodeRecord]) -> str:
    """The document. `figures` is `scores.summarise` with `facts` and `failures`; `shown` are the episodes that are drawn: those of the
    smallest, the median and the largest error, where there are three.
    """
    charts, findings = Charts(), findings_of(figures)
    content = [
        ("warnings", "Warnings", warning_list(findings) if findings else absent("Nothing stands out.")),
        ("verdicts", "Verdicts", _verdicts(figures)),
        ("errors", "Errors", _errors(figures)),
        ("dimensions", "By dimension", _dimensions(figures)),
        ("horizon", "Over an answer", _horizon(figures, charts)),
        (
            "episodes",
            "Episodes",
            join([_episode(*one, figures, charts) for one in zip(shown, _words(len(shown)), strict=True)]),
        ),
        ("failures", "Failures", _failures(figures)),
        ("facts", "Facts", tree(dict(figures["facts"]))),
    ]
    name = str(figures["facts"]["policy"])
    header = join(
        el("p", "Policy beside recorded episodes", class_="kicker"),
        el("div", el("h1", name.rstrip("/").rpartition("/")[2]), counted(findings), class_="title"),
        el(
            "p",
            f"{name} · no robot and no simulator: a policy that is good here can still fail in rollouts",
            class_="lede",
        ),
        el("div", _tiles(figures), class_="tiles"),
    )
    return page(f"{name} · Open loop", header, content, charts.figures)


def findings_of(figures: Figures) -> list[Finding]:
    """Warnings, the serious ones first."""
    found = []
    for verdict in figures["verdicts"]:
        if verdict["passed"] is False:
            level = "bad" if verdict["serious"] else "warn"
            shown = "; ".join(f"{row}: {_gain(figures, row)}" for row in verdict["rows"])
            found.append(Finding(level, verdict["words"], REMEDIES[verdict["check"]], shown))
    if figures["episodes"] < FEW:
        text = f"Only {figures['episodes']} episodes were compared."
        found.append(
            Finding("warn", text, "Intervals over so few say little: pass more with --episodes or --split all.")
        )
    return worst_first(found)


def _gain(figures: Figures, row: str) -> str:
    found = figures["gains"][row]
    if found["mean"] is None:
        return "n/a"
    limits = "" if found["low"] is None else f" ({100 * found['low']:+.2f} to {100 * found['high']:+.2f})"
    return f"{100 * found['mean']:+.2f} % of the range{limits}"


def _tiles(figures: Figures) -> list[Html]:
    late = figures["lag"]["steps"]
    return [
        _error_tile(figures),
        tile("Motion", "n/a" if figures["motion"] is None else f"{figures['motion']:.0%}", "of the recordings'"),
        tile("Delay", "n/a" if late is None else f"{late} steps", "at the best correlation"),
        tile("Episodes", number(figures["episodes"]), join(number(figures["moments"]), " moments")),
    ]


def _error_tile(figures: Figures) -> Html:
    """Against the best trivial row."""
    rows, own = figures["rows"], figures["rows"][POLICY]["error"]
    if own["mean"] is None:
        return tile("Error", "n/a", "no action ever changes")
    best = min((row for row in SIMPLE if row in rows), key=lambda row: rows[row]["error"]["mean"])
    error = rows[best]["error"]["mean"]
    mark = badge(f"{own['mean']:.2%} against {error:.2%} of {best}", "good" if own["mean"] < error else "bad")
    limits = "of the range" if own["low"] is None else f"{own['low']:.2%} – {own['high']:.2%} of the range"
    return tile("Error", f"{own['mean']:.2%}", join(limits, el("br"), mark))


def _verdicts(figures: Figures) -> Html:
    marks = {True: badge("yes", "good"), False: badge("no", "bad"), None: badge("not told")}
    rows = [[v["check"], marks[v["passed"]], v["words"], v["rule"]] for v in figures["verdicts"]]
    text = (
        f"Differences of errors are paired by episode, with {figures['level']:.0%} intervals by a bootstrap over episodes "
        f"({figures['resamples']} draws)."
    )
    return join(about(text), table(("Does it", "", "What is so", "Rule"), rows))


def _errors(figures: Figures) -> Html:
    rows = []
    for row, found in figures["rows"].items():
        error = found["error"]
        limits = "n/a" if error["low"] is None else f"{error['low']:.2%} to {error['high']:.2%}"
        mean = "n/a" if error["mean"] is None else f"{error['mean']:.2%}"
        rows.append([el("code", row), ROWS[row], mean, limits, "" if row == POLICY else _gain(figures, row)])
    text = (
        "Mean absolute error relative to each dimension's range, quantiles 1 % to 99 % of the training rows, over dimensions that "
        "have one. The last column is the row's error less the policy's: above 0, the policy is better."
    )
    return join(
        about(text), table(("Row", "What acts", "Error", "Interval", "More than the policy"), rows, numbers=(2, 3, 4))
    )


def _dimensions(figures: Figures) -> Html:
    rows, own = figures["rows"], figures["rows"][POLICY]
    others = [row for row in rows if row != POLICY]
    body = []
    for i, name in enumerate(figures["dimensions"]):
        relative = own["relative"][i]
        best = min(
            (rows[row]["mae"][i] for row in others if row in SIMPLE and rows[row]["mae"][i] is not None),
            default=None,
        )
        mark = None
        if relative is not None and best is not None and own["mae"][i] is not None and own["mae"][i] >= best:
            mark = badge("no better", "warn")
        cells = [number(own["mae"][i]), number(own["rmse"][i]), "constant" if relative is None else f"{relative:.1%}"]
        body.append([el("code", name), *cells, *(number(rows[row]["mae"][i]) for row in others), mark])
    text = "Mean absolute errors in the robot's units; RMSE and the error relative to the range are the policy's."
    head = ("Dimension", "policy", "RMSE", "of the range", *others, "")
    return join(about(text), table(head, body, numbers=range(1, len(head) - 1)))


def _horizon(figures: Figures, charts: Charts) -> Html:
    shown = [row for row in (POLICY, "blind", *SIMPLE) if row in figures["rows"]]
    colors = (*COLORS, "@muted")
    lines = [
        Line(
            row,
            [(i + 1, v) for i, v in enumerate(figures["rows"][row]["by_step"]) if v is not None],
            color,
            markers=True,
        )
        for row, color in zip(shown, colors, strict=False)
    ]
    return charts.grid(
        [Chart("Error by step of an answer", lines, "of the range", percent=True, from_zero=True)]
    ) or absent("Nothing.")


def _words(count: int) -> list[str]:
    return [", smallest error", ", median", ", largest error"] if count == 3 else [""] * count


def _episode(record: EpisodeRecord, which: str, figures: Figures, charts: Charts) -> Html:
    made, truth = executed(record)
    names = figures["dimensions"]
    moving = [i for i, spread in enumerate(figures["range"]) if spread is not None][:MOST_CURVES]
    drawn = [
        Chart(
            names[i],
            [Line("recorded", _points(truth[:, i]), "@muted"), Line("policy", _points(made[:, i]), "@c1")],
            f"over actions at {record.rate_hz:g} Hz",
        )
        for i in moving
    ]
    text = f"{', '.join(dict.fromkeys(record.tasks))} The first {record.every} actions of every answer, beside the recorded ones."
    title = el("h3", f"{record.set}, episode {record.number}{which}")
    return join(title, about(text), _pictures(record), charts.grid(drawn))


def _points(values: np.ndarray) -> list[tuple[int, float]]:
    return list(enumerate(values.tolist()))


def _pictures(record: EpisodeRecord) -> Html | None:
    """What the model saw: a line of pictures for each camera."""
    lines = []
    by_camera = sorted(record.seen, key=lambda one: (one.camera, one.time_s))
    for camera, shown in groupby(by_camera, key=lambda one: one.camera):
        pictures = [
            el(
                "img",
                src=_uri(one.jpeg),
                alt=f"{camera} at {one.time_s:.2f} s",
                title=f"{one.time_s:.2f} s",
                style=PICTURE,
            )
            for one in shown
        ]
        lines.append(el("div", el("code", camera), el("br"), pictures, style="margin:.4rem 0"))
    return el("div", lines) if lines else None


PICTURE = "width:11rem;max-width:30%;margin-right:.4rem;image-rendering:pixelated"


def _uri(jpeg: np.ndarray) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()


def _failures(figures: Figures) -> Html:
    if not figures["failures"]:
        return absent("Every episode was read.")
    rows = [[el("code", one["episode"]), one["why"]] for one in figures["failures"]]
    return join(about("These episodes are in no number of this page."), table(("Episode", "Why"), rows))
