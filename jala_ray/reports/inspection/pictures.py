"""The sections of an inspection page that show the sample: motion in plain units, and frames with projected hands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from jala_ray.reports.inspection.motion import QUANTITIES, ClipMotion, Outlier, inside_share, pool
from jala_ray.reports.inspection.parts import HAND_COLORS, count, histogram, percent, ranges, small
from jala_ray.reports.inspection.sample import ClipFrames, Unreadable, by_source
from jala_ray.reports.kit.figures import Charts
from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.overlay import HAND_COLORS as SKELETON_COLORS
from jala_ray.reports.kit.overlay import data_uri
from jala_ray.reports.kit.widgets import about, absent, badge, table
from jala_ray.types import HAND_NAMES, Hand

OUTLIERS_EACH = 12
"""Outliers listed of a kind, the worst."""
UNREADABLE = 12
DIGITS = {"finger": 0, "bend": 0}
"""Decimals of the quantities that do not have two."""


def motion(motions: Sequence[ClipMotion], beyond: Sequence[Outlier], charts: Charts) -> Html:
    """Histograms over all measured clips, ranges by source and hand, and what lies beyond the limits."""
    if not motions:
        return absent("There is no labelled clip to measure.")
    drawn = []
    for quantity, (title, unit) in QUANTITIES.items():
        values = {f"{HAND_NAMES[side]} hand": (pool(motions, side, quantity), HAND_COLORS[side]) for side in Hand}
        if any(len(found) for found, _ in values.values()):
            drawn.append(charts.place(title, unit, histogram(values, unit.partition(",")[0])))
    text = (
        f"All valid frames of {len(motions):,} sampled labelled clips as stored: in the camera of the clip's first frame, x right, "
        "y down, z forward. Shares of each hand's values; the outermost bars hold everything beyond. In a person's own view the left "
        "hand is to the left, and fingers bend to the positive side: a swapped or mirrored hand shows at once."
    )
    return join(
        about(text),
        el("div", drawn, class_="charts"),
        el("h3", "Ranges by source", style="margin-top:1.4rem"),
        _range_table(motions),
        about(
            "1st percentile · median · 99th percentile. In picture: wrists that project into the image, by camera and extrinsics."
        ),
        el("h3", "Outliers"),
        _outliers(beyond),
    )


def _range_table(motions: Sequence[ClipMotion]) -> Html:
    rows = [
        (source, side, [motion for motion in mine if side in motion.hands])
        for source, mine in by_source(motions).items()
        for side in Hand
    ]
    rows = [(source, side, mine, {q: pool(mine, side, q) for q in QUANTITIES}) for source, side, mine in rows if mine]
    axes: dict[str, tuple[float, float]] = {}
    for quantity in QUANTITIES:
        ends = [np.percentile(values[quantity], [1, 99]) for *_, values in rows if len(values[quantity])]
        axes[quantity] = min([0.0, *(low for low, _ in ends)]), max([0.0, *(high for _, high in ends)])
    cells = []
    for source, side, mine, values in rows:
        found = [ranges(values[q], *axes[q], HAND_COLORS[side], DIGITS.get(q, 2)) for q in QUANTITIES]
        inside = inside_share(mine, side)
        seen = percent(inside) if inside is not None else el("span", "no camera")
        named = el("span", source, el("br"), small(f"{HAND_NAMES[side]}, {len(mine):,} clips"))
        cells.append([named, *found, seen])
    head = ("Source", "x, m", "y, m", "z, m", "Speed, m/s", "Fingers, °", "Bending, °", "In picture")
    return table(head, cells, numbers=tuple(range(1, len(head))))


def _outliers(beyond: Sequence[Outlier]) -> Html:
    if not beyond:
        return absent("No measured clip moves in an unlikely way.")
    listed: list[Outlier] = []
    kinds: Counter[str] = Counter()
    for outlier in beyond:
        kinds[outlier.kind] += 1
        listed += [outlier] if kinds[outlier.kind] <= OUTLIERS_EACH else []
    rows = [[el("code", o.clip_id), el("span", o.source), el("span", o.hand), o.what, o.value, o.limit] for o in listed]
    more = f" The worst {OUTLIERS_EACH} of each kind are listed." if len(listed) < len(beyond) else ""
    head = ("Clip", "Source", "Hand", "What", "Value", "Limit")
    clips = len({outlier.row for outlier in beyond})
    text = f"Beyond what hands do: {len(beyond):,} findings in {clips:,} clips, worst first.{more}"
    return join(about(text), table(head, rows, numbers=(4, 5)))


def sheet(
    looks: Sequence[ClipFrames],
    odd: Sequence[ClipFrames],
    unreadable: Sequence[Unreadable],
    cells: int,
    beyond: Sequence[Outlier],
) -> Html:
    """Frames of the drawn clips, then of outliers, then the rows that could not be read. `cells`: pairs of source and task type."""
    if not looks and not unreadable:
        return absent("No row has a video of at least one chunk.")
    keys = [
        el("span", el("i", style=f"background: rgb{color}"), f"{side.name.lower()} hand", class_="key")
        for side, color in SKELETON_COLORS.items()
    ]
    marks: dict[int, list[str]] = {}
    for outlier in beyond:
        marks.setdefault(outlier.row, []).append(outlier.what)
    seen = len({(look.clip.source, look.clip.task_type) for look in looks})
    text = (
        f"{len(looks):,} clips from {seen} of {cells} pairs of source and task type: the first boundary frames, one model second "
        "apart, with their times in the video. Labelled hands are projected with the clip's camera."
    )
    ordered = sorted(looks, key=lambda look: (look.clip.source, look.clip.task_type, look.row))
    return join(
        about(text),
        keys,
        [_clip(look, marks) for look in ordered],
        [el("h3", "Outliers", style="margin-top:1.6rem"), [_clip(look, marks) for look in odd]] if odd else None,
        [
            el("h3", "Rows that cannot be read", style="margin-top:1.6rem"),
            about(f"{len(unreadable):,} of the rows drawn; these are the first."),
            table(("Row", "Why"), [[count(item.row), item.reason] for item in unreadable[:UNREADABLE]], numbers=(0,)),
        ]
        if unreadable
        else None,
    )


def _clip(look: ClipFrames, marks: Mapping[int, Sequence[str]]) -> Html:
    """Text to the left, frames to the right; below each other where there is no room."""
    clip = look.clip
    states = ", ".join(f"{side} {hand.state.name.lower()}" for side, hand in zip(HAND_NAMES, clip.hands, strict=True))
    size = f" · {look.info.width} × {look.info.height}" if look.info else ""
    lines = [
        f"{clip.source} · {clip.task_type}",
        f"{clip.domain} · {clip.split} · time scale {clip.time_scale:g}{size}",
        states,
        join(
            f"{clip.start_s:.2f} to {clip.end_s:.2f} s of ",
            el("span", _short(str(clip.video_uri)), title=clip.video_uri),
        ),
    ]
    words = el("p", clip.instructions[0] if clip.instructions else clip.description or "(no text)", class_="words")
    facts = el("p", el("code", clip.clip_id), [[el("br"), line] for line in lines], class_="facts", style="margin:0")
    warned = [el("div", badge(what, "warn")) for what in dict.fromkeys(marks.get(look.row, ()))]
    if look.problem:
        shown = el(
            "p", badge("unreadable", "bad"), " ", look.problem, class_="absent", style="margin:0;overflow-wrap:anywhere"
        )
    else:
        shown = el("div", [_frame(look, i) for i in range(len(look.frames))], class_="strip", style="flex-wrap:wrap")
    return el(
        "div",
        el("div", words, facts, warned, style="flex:0 1 17rem;min-width:0"),
        el("div", shown, style="flex:1 1 30rem;min-width:0"),
        class_="clip",
        style="display:flex;flex-wrap:wrap;gap:.6rem 1.4rem;border-top:1px solid var(--line);margin-top:.9rem;padding-top:.9rem",
    )


def _short(uri: str) -> str:
    """A video's file and folder; the page has the whole address as a tooltip."""
    parts = uri.split("/")
    return uri if len(parts) <= 2 else f"…/{'/'.join(parts[-2:])}"


def _frame(look: ClipFrames, i: int) -> Html:
    frame = look.frames[i]
    picture = el(
        "img",
        src=data_uri(frame.image),
        alt=f"boundary frame {frame.boundary}",
        loading="lazy",
        style="height:108px",
    )
    fault = look.faults.get(frame.boundary)
    return el("figure", picture, el("figcaption", f"{frame.time_s:.2f} s ", badge(fault, "warn") if fault else None))
