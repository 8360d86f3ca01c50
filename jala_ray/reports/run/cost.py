"""What a step costs, on the page of a run: its parts, FLOPs, memory, ranks against one another, goodput."""

from __future__ import annotations

import re
from statistics import median

from jala_ray.reports.kit.figures import Chart, Charts, Line, Point, points, stacked
from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.widgets import about, number, percent, table, tile
from jala_ray.reports.run.folder import RunFolder

PARTS = {
    "data": ("Data", "@c2", "until the batch is there, on every rank"),
    "copy": ("Copy", "@ink", "until it is on the device"),
    "forward": ("Forward", "@c1", ""),
    "backward": ("Backward", "@c4", "with the sum of gradients over ranks"),
    "optimizer": ("Optimizer", "@c3", "gradient norm, update, moving averages"),
    "other": ("Between steps", "@muted", "evaluations and checkpoints, spread over the steps"),
}
"""Title, colour and what it takes, in a step's order."""
KEYS = re.compile(r"step_s/.+|tflops_per_s|mfu|memory(_computed)?_gb|rank_balance|straggler|goodput")


def tiles(run: RunFolder) -> list[Html]:
    """Those that the rows tell."""
    found, rate, used = [], _typical(run, "tflops_per_s"), _typical(run, "mfu")
    if used is not None:
        found.append(tile("MFU", percent(used), join("median, ", number(rate), " TFLOP/s")))
    if (memory := points(run.metrics, "memory_gb")) and used is not None:
        computed = points(run.metrics, "memory_computed_gb")
        beside = f", {computed[-1][1]:.1f} GB computed" if computed else ""
        found.append(tile("Memory", number(max(value for _, value in memory), 3, " GB"), f"peak of a rank{beside}"))
    if goodput := points(run.metrics, "goodput"):
        found.append(tile("Goodput", percent(goodput[-1][1]), "training, of all time"))
    return found


def section(run: RunFolder, charts: Charts) -> Html | None:
    """None for a run whose rows tell none of it."""
    lines = {part: points(run.metrics, f"step_s/{part}") for part in PARTS}
    lines = {part: line for part, line in lines.items() if any(value for _, value in line)}
    grid = charts.grid(
        [
            _chart(run, charts, "mfu", "Needed FLOPs of the device's peak (MFU)", "@c1", percent=True),
            _chart(run, charts, "tflops_per_s", "Needed TFLOP/s of a rank", "@c3"),
            _chart(run, charts, "memory_gb", "Peak memory, GB", "@c4"),
            _chart(run, charts, "goodput", "Goodput", "@c3", percent=True),
            _balance(run, charts),
        ]
    )
    return join(_parts(lines, charts), grid) if lines or grid is not None else None


def _parts(lines: dict[str, list[Point]], charts: Charts) -> Html | None:
    if not lines:
        return None
    named = {PARTS[part][0]: line for part, line in lines.items()}
    colors = {PARTS[part][0]: PARTS[part][1] for part in lines}
    figure = stacked(named, colors, "step", "seconds a step")
    means = {part: mean_step(line) for part, line in lines.items()}
    whole = sum(means.values())
    rows = [
        [PARTS[part][0], number(value), percent(value / whole if whole else None), PARTS[part][2]]
        for part, value in means.items()
    ]
    text = "A mean over ranks. On a GPU a part is the time of the device, and its wait for a batch is the data's."
    return join(
        about(text),
        el("div", charts.place("A step by its parts", "", figure), class_="charts"),
        table(("Part", "Seconds a step, mean", "Share", ""), rows, numbers=(1, 2)),
    )


def mean_step(line: list[Point]) -> float:
    """Of figures a step, each of the steps since the point before."""
    steps = [step - before for step, before in zip((s for s, _ in line), (0, *(s for s, _ in line)), strict=False)]
    return sum(n * value for n, (_, value) in zip(steps, line, strict=True)) / sum(steps)


def _chart(run: RunFolder, charts: Charts, key: str, title: str, color: str, percent: bool = False) -> Chart:
    middle = _typical(run, key)
    note = "" if middle is None else f"median {middle:.1%}" if percent else f"median {middle:,.4g}"
    line = Line(title, points(run.metrics, key), color, smooth=key != "goodput")
    return Chart(title, [line], note, percent=percent, from_zero=True, resumes=charts.resumes)


def _balance(run: RunFolder, charts: Charts) -> Chart:
    lines = [
        Line("FLOPs", points(run.metrics, "rank_balance"), "@c1", smooth=True),
        Line("forward time", points(run.metrics, "straggler"), "@c2", smooth=True),
    ]
    return Chart("Slowest rank / mean of the ranks", lines, "1: all alike", resumes=charts.resumes)


def _typical(run: RunFolder, key: str) -> float | None:
    values = [value for _, value in points(run.metrics, key)]
    return median(values) if values else None
