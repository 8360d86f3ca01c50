"""A tokenizer's `quality.json` as tiles, a table and bars, whatever measures it holds."""

from __future__ import annotations

from jala_ray.reports.kit.figures import Charts, bars
from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.widgets import about, absent, number, table, tile

Path = tuple[str, ...]


def section(values: dict | None, why_absent: str, charts: Charts) -> Html:
    """Single numbers as a table; lists of numbers (one per level) as bars, a chart per measure."""
    if values is None:
        return absent(why_absent)
    scalars, series = split(values)
    charted: dict[str, dict[Path, list[float]]] = {}
    for path, numbers in series.items():
        charted.setdefault(path[-1], {})[path[:-1]] = numbers
    codes = values.get("codes")
    notes = {"usage": "share of codes seen"} | ({"perplexity": f"of {codes} codes"} if codes else {})
    placed = []
    for name, lines in charted.items():
        common = shared_prefix(list(lines))
        groups = {
            " ".join(path[common:]) or name: {str(i + 1): v for i, v in enumerate(numbers)}
            for path, numbers in lines.items()
        }
        share = all(0 <= v <= 1 for numbers in lines.values() for v in numbers)
        figure = bars(groups, "level", percent=share, top=1 if share else None)
        placed.append(charts.place(readable(name), notes.get(name, ""), figure))
    rows = [[" · ".join(map(readable, path)), number(value)] for path, value in scalars.items()]
    return join(
        about("Reconstruction through forward kinematics, and how much of each codebook is in use."),
        table(("Measure", "Value"), rows, numbers=(1,)) if rows else None,
        el("div", placed, class_="charts") if placed else None,
    )


def tiles(values: dict | None) -> list[Html]:
    """The errors in cm or degrees, for the top of the page."""
    found = []
    for path, value in split(values or {})[0].items():
        name, _, unit = path[-1].rpartition("_")
        if unit in ("cm", "deg", "degrees"):
            found.append(
                tile(
                    readable(" ".join((*path[:-1], name))),
                    number(value, 3),
                    "cm" if unit == "cm" else "degrees",
                )
            )
    return found


def split(values: dict, path: Path = ()) -> tuple[dict[Path, object], dict[Path, list[float]]]:
    """({path: single value}, {path: list of numbers}) of nested dicts and lists.

    A list of lists is `[group][level]`: the group goes before the measure's name, so that the groups share its
    chart.
    """
    scalars: dict[Path, object] = {}
    series: dict[Path, list[float]] = {}
    for key, value in values.items():
        here = (*path, str(key))
        if isinstance(value, dict):
            inner = split(value, here)
            scalars |= inner[0]
            series |= inner[1]
        elif is_numbers(value):
            series[here] = value
        elif isinstance(value, list) and value and all(map(is_numbers, value)):
            series |= {(*path, f"group {i + 1}", str(key)): numbers for i, numbers in enumerate(value)}
        elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            for i, item in enumerate(value):
                inner = split(item, (*here, str(i + 1)))
                scalars |= inner[0]
                series |= inner[1]
        else:
            scalars[here] = value
    return scalars, series


def is_numbers(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, (int, float)) for v in value)


def shared_prefix(paths: list[Path]) -> int:
    """How many leading parts all paths have in common (all but the last part of a lone path)."""
    if len(paths) == 1:
        return max(0, len(paths[0]) - 1)
    count = 0
    while all(len(path) > count + 1 for path in paths) and len({path[count] for path in paths}) == 1:
        count += 1
    return count


def readable(name: str) -> str:
    words = name.replace("_", " ").replace("mpjpe", "MPJPE")
    return words[:1].upper() + words[1:]
