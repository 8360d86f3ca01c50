"""From the summaries of scores and latents to the plain data that the page of a motion evaluation takes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jala_ray.evaluation.bootstrap import Estimate
from jala_ray.evaluation.scores import BOTH, Group, GroupTable, Scores, Summary, extremes
from jala_ray.hands.metrics import METRICS
from jala_ray.reports.motion.latents import Points, Retrieval
from jala_ray.reports.motion.tables import DOMAIN_NAMES, Cell, Line, PageScores, Pick, Second
from jala_ray.types import HAND_NAMES

PICKED_BY = "mpjpe"


def page_scores(
    summary: Summary, models: Sequence[str], *, shown: Sequence[str] | None = None, count: int = 1
) -> PageScores:
    """`models` are the rows that are models. Of each row in `shown` (by default the first model) and domain, `count` best, median
    and worst clips are picked by MPJPE over both hands. A group that both domains have is named with its domain.
    """
    scores = summary.scores
    rows = models[:1] if shown is None else shown
    table: dict[str, dict[str, Line]] = {row: {} for row in scores.rows}
    for found in summary.groups:
        if found.group == Group(found.group.domain):
            for row, line in _lines(found).items():
                table[row][str(found.group.domain)] = line
    return PageScores(
        metrics=list(METRICS),
        rows=list(scores.rows),
        models=list(models),
        table=table,
        by_source=_parts(summary, "source"),
        by_task=_parts(summary, "task_type"),
        by_hand=_parts(summary, "hand"),
        horizon={
            domain: {row: [_second(i, e) for i, e in enumerate(line, 1)] for row, line in lines.items()}
            for domain, lines in summary.horizon.items()
        },
        picked=[
            pick for row in rows for domain in summary.horizon for pick in _picks(scores, row, Group(domain), count)
        ],
    )


def page_latents(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of `latents.summary`, what the page shows. Retrieval is that over all clips."""
    asked = summary["retrieval"].get("all")
    return {
        "probes": summary["probes"],
        "retrieval": None if asked is None else {name: asked[name] for name in Retrieval.__annotations__},
        "tsne": {
            space: {name: points[name] for name in Points.__annotations__} for space, points in summary["tsne"].items()
        },
    }


def _parts(summary: Summary, key: str) -> dict[str, dict[str, Line]]:
    """Name of a part -> row -> metric -> cell, of the groups that `key` restricts."""
    found = [part for part in summary.groups if getattr(part.group, key) is not None]
    shared = Counter(getattr(part.group, key) for part in found)
    named = {}
    for part in found:
        value = getattr(part.group, key)
        name = (
            HAND_NAMES[value] if key == "hand" else str(value).replace("_", " ") if key == "task_type" else str(value)
        )
        domain = DOMAIN_NAMES.get(str(part.group.domain))
        named[f"{name}, {domain}" if shared[value] > 1 else name] = _lines(part)
    return named


def _lines(part: GroupTable) -> dict[str, Line]:
    return {row: {metric: _cell(e) for metric, e in means.items()} for row, means in part.rows.items()}


def _cell(found: Estimate) -> Cell:
    return Cell(mean=_known(found.mean), low=_known(found.low), high=_known(found.high), clips=found.clips)


def _second(second: int, found: Estimate) -> Second:
    low, high = _known(found.low), _known(found.high)
    return Second(second=second, mpjpe=_known(found.mean), clips=found.clips, low=low, high=high)


def _picks(scores: Scores, row: str, group: Group, count: int) -> Iterator[Pick]:
    place = {id(record): c for c, record in enumerate(scores.clips)}
    r = scores.rows.index(row)
    for kind, clips in extremes(scores, row, PICKED_BY, group, count=count).items():
        for record, _ in clips:
            values = scores.values[r, place[id(record)], BOTH].tolist()
            errors = {metric: _known(value) for metric, value in zip(METRICS, values, strict=True)}
            yield Pick(kind=kind, row=row, clip_id=record.clip_id, domain=record.domain, scores=errors)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
