"""The section of an inspection page that shows what was measured beside hands."""

from __future__ import annotations

from collections.abc import Iterable

from jala_ray.data.manifest.signal_census import SignalCensus
from jala_ray.reports.inspection.parts import count
from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.widgets import about, table
from jala_ray.types import Clip


def signals(clips: Iterable[Clip]) -> Html:
    """A line for each signal of the clips that were read, with its range, and what deserves a second look; and the side views."""
    census, read = SignalCensus(), 0
    for clip in clips:
        read += 1
        census.add(clip.signals, tuple(clip.views))
    cells = []
    for name, facts in sorted(census.facts.items()):
        ((kind, _),) = facts.kinds.most_common(1)
        noted = list(facts.warnings())
        cells.append(
            [
                el("span", name),
                el("span", kind),
                count(facts.rows),
                el("span", facts.hertz),
                count(facts.values),
                el("span", facts.range),
                join(*(el("div", text) for text in noted)) if noted else el("span", "nothing"),
            ]
        )
    head = ("Signal", "Type, shape", "Clips", "Rate", "Values", "Least to largest, by dimension", "To look at")
    text = f"Of the {read:,} clips that were read. `jala validate` says it of all rows."
    views = [[el("span", name), count(rows)] for name, rows in sorted(census.views.items())]
    beside = [table(("Side view", "Clips"), views, numbers=(1,))] if views else []
    return join(about(text), table(head, cells, numbers=(2, 4)), *beside)
