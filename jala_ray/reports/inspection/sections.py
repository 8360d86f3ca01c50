"""The sections of an inspection page that show counts: make-up, sources, lengths and hands, quarantine."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

import numpy as np

from jala_ray.reports.inspection.census import LENGTH_BIN_S, Census
from jala_ray.reports.inspection.parts import HAND_COLORS, barred, count, duration, percent, share, small, titled
from jala_ray.reports.inspection.quarantine import Quarantine
from jala_ray.reports.inspection.sample import ClipFrames, by_source
from jala_ray.reports.kit.figures import Charts, bars
from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.widgets import about, absent, table
from jala_ray.types import HAND_NAMES, Clip, Hand, HandState

STATES = tuple(state.name.lower() for state in HandState)
COMMON = 3
"""Values of a column named for each source, the most frequent."""
SIDE_COLORS = {name: HAND_COLORS[side] for name, side in zip(HAND_NAMES, Hand, strict=True)}


def makeup(census: Census) -> Html:
    """Shares by source, domain, split and task type."""
    text = "A row is a clip with one task, the unit that training draws. Model time counts each clip of a line once."
    rest = [
        _shares(census, "domain", "Domain", "@c3"),
        _shares(census, "split", "Split", "@c2"),
        _shares(census, "task_type", "Task type", "@c4"),
    ]
    columns = el("div", _shares(census, "source", "Source", "@c1"), el("div", rest), class_="charts")
    return join(about(text), columns)


def _shares(census: Census, key: str, title: str, color: str) -> Html:
    lines = census.lines(key, first=False)
    total = sum(line["rows"] for line in lines)
    # A row is the only one of its clip and task; over several tasks, only the first row of a clip counts.
    model_s = {line[key]: line["model_s"] for line in census.lines(key, first=key != "task_type")}
    cells = [
        [
            el("span", line[key]),
            count(line["rows"]),
            barred(share(line["rows"], total), color, "5rem"),
            duration(model_s.get(line[key], 0.0)),
        ]
        for line in lines
    ]
    shown = table((title, "Rows", "Share of rows", "Model time"), cells, numbers=(1, 2, 3))
    return el("div", shown, style="margin-bottom:1rem")


def sources(census: Census, clips: Sequence[Clip], looks: Sequence[ClipFrames]) -> Html:
    """A line for each source: from the index of all rows, then from the sample."""
    rates, scales = _common(census, "fps"), _common(census, "time_scale")
    val = {line["source"]: line["rows"] for line in census.lines("source", split="val")}
    lines = census.lines("source")
    cells = []
    for line in lines:
        source = line["source"]
        possible, labelled = (line[f"left_{what}"] + line[f"right_{what}"] for what in ("chunks", "labelled"))
        cells.append(
            [
                el("span", source),
                count(line["rows"]),
                count(census.videos_by_source.get(source, 0)),
                duration(line["source_s"]),
                duration(line["model_s"]),
                *(_labelled(line[f"{side}_labelled"], line["chunks"], side) for side in HAND_NAMES),
                percent(share(possible - labelled, possible)),
                rates[source],
                scales[source],
                percent(share(val.get(source, 0), line["rows"])),
            ]
        )
    head = (
        *("Source", "Clips", "Videos", "Source time", "Model time", "Left labelled", "Right labelled"),
        *("Lost", "fps", "Time scale", "Val"),
    )
    text = (
        "Each clip once. Labelled: share of all chunks, by hand. Lost: of the chunks of clips in which the hand is labelled, "
        "those that invalid frames cost."
    )
    return join(
        about(text),
        table(head, cells, numbers=tuple(range(1, len(head)))),
        el("h3", "As seen in the sample"),
        _sampled([line["source"] for line in lines], clips, looks) if clips else absent("No row could be read."),
    )


def _labelled(labelled: int, chunks: int, side: str) -> Html:
    return barred(share(labelled, chunks), SIDE_COLORS[side], "2.4rem")


def _common(census: Census, key: str) -> dict[str, Html]:
    """The most frequent values of a column by source."""
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for line in census.lines("source", key):
        found[line["source"]].append((line[key], line["rows"]))
    shown = {}
    for source, values in found.items():
        text = ", ".join(f"{value:g}" for value, _ in values[:COMMON]) + (" …" if len(values) > COMMON else "")
        title = ", ".join(f"{value:g}: {clips:,} clips" for value, clips in values[:20])
        shown[source] = el("span", text, title=title)
    return shown


def _sampled(order: Sequence[str], clips: Sequence[Clip], looks: Sequence[ClipFrames]) -> Html:
    infos = defaultdict(list)
    for look in looks:
        if look.info is not None:
            infos[look.clip.source].append(look.info)
    grouped = by_source(clips)
    cells = []
    for source in (source for source in order if source in grouped):
        mine = grouped[source]
        filmed = [clip for clip in mine if clip.video_uri is not None]
        texts = [clip.instructions[0] for clip in mine if clip.instructions]
        cells.append(
            [
                el("span", source),
                count(len(mine)),
                f"{sum(c.packets is not None for c in filmed):,} of {len(filmed):,}" if filmed else "no video",
                f"{sum(c.camera is not None for c in mine):,} of {len(mine):,}",
                f"{sum(len(c.extrinsics) > 0 for c in mine):,} of {len(mine):,}",
                _tally(f"{info.width} × {info.height}" for info in infos[source]),
                _tally(f"{info.fps:.4g}" for info in infos[source]),
                f"{len(set(texts)):,} of {len(texts):,}" if texts else "none",
                f"{median(len(text.split()) for text in texts):g}" if texts else "n/a",
            ]
        )
    head = (
        *("Source", "Rows read", "Packet index", "Camera", "Moving camera", "Sizes in the files", "fps in the files"),
        *("Different texts", "Words"),
    )
    text = "Different texts: first instructions. Words: of the median instruction. Sizes and rates: of the videos on the contact sheet."
    return join(table(head, cells, numbers=tuple(range(1, len(head)))), about(text))


def _tally(values: Iterable[str]) -> str:
    counts = Counter(values)
    return ", ".join(value for value, _ in counts.most_common(COMMON)) + (" …" if len(counts) > COMMON else "") or "n/a"


def lengths_and_hands(census: Census, charts: Charts) -> Html:
    total = census.total()
    if not total["rows"]:
        return absent("There are no clips.")
    lines = census.lines("domain", "length_s")
    starts = [line["length_s"] for line in lines]
    groups: dict[str, dict[str, float]] = {}
    for domain in sorted({line["domain"] for line in lines}):
        mine = {line["length_s"]: line["rows"] for line in lines if line["domain"] == domain}
        bins = np.arange(min(starts), max(starts) + LENGTH_BIN_S / 2, LENGTH_BIN_S)
        groups[domain] = {f"{start:g}": mine.get(start, 0) for start in bins}
    figure = bars(groups, f"seconds of model time, bins of {LENGTH_BIN_S:g} s by their beginning")
    figure["layout"] |= {"barmode": "stack", "bargap": 0.08}
    states = {
        (line["left_state"], line["right_state"]): line["rows"] for line in census.lines("left_state", "right_state")
    }
    matrix = [
        [
            el("span", f"left {left}"),
            *(barred(share(states.get((left, right), 0), total["rows"]), "@c1", "2.2rem") for right in STATES),
        ]
        for left in STATES
    ]
    hands = []
    for side in HAND_NAMES:
        possible, labelled = total[f"{side}_chunks"], total[f"{side}_labelled"]
        shown = _labelled(labelled, total["chunks"], side)
        lost = percent(share(possible - labelled, possible))
        hands.append([el("span", side), count(possible), count(labelled), shown, lost])
    note = "The model sees a chunk as untracked unless all its 15 frames have a valid pose."
    return join(
        about("Each clip once."),
        el(
            "div",
            charts.place("Clip lengths", "clips, by domain", figure),
            titled(
                "Hand states", table(("", *(f"right {state}" for state in STATES)), matrix, (1, 2, 3)), "share of clips"
            ),
            class_="charts",
        ),
        el("h3", "Labelled hand-chunks", style="margin-top:1.4rem"),
        table(
            ("Hand", "Chunks where labelled", "With all frames valid", "Share of all chunks", "Lost"),
            hands,
            (1, 2, 3, 4),
        ),
        about(note),
    )


def quarantine(found: Quarantine) -> Html:
    if not found.rows:
        return absent("No errors table lies beside the manifest, or it is empty.")
    rows = []
    for reason, known in found.reasons.items():
        names = ", ".join(f"{source} ({n:,})" for source, n in known.sources.most_common(COMMON))
        example = join(known.example, el("br"), small(el("code", ", ".join(known.clips))))
        rows.append([reason, count(known.rows), el("span", names), example])
    text = f"{found.rows:,} rows could not be taken in when the manifest was written. They lie, with their reasons, in "
    return join(
        about(text, el("code", ", ".join(found.files)), "."),
        table(("Reason", "Rows", "Sources", "For example"), rows, numbers=(1,)),
    )
