"""The clips that a motion evaluation shows: best, median and worst of a row, each with its video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jala_ray.evaluation.records import ClipRecord, Evaluation
from jala_ray.reports.kit.clip_videos import GAP, TRUE_COLOR, ClipVideo, by_clip
from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.overlay import HAND_COLORS
from jala_ray.reports.kit.widgets import about, absent, badge
from jala_ray.reports.motion.tables import DOMAIN_NAMES, PageScores, Pick, label_of, unit_of
from jala_ray.types import CHUNK_SECONDS, HAND_NAMES, MODEL_FPS

KINDS = {"best": "good", "worst": "bad"}
"""Badges of the kinds of picks; the others are neutral."""


def picked_clips(evaluation: Evaluation, scores: PageScores, videos: Sequence[ClipVideo]) -> Html:
    """Every picked pair of row and clip once, under its row."""
    if not scores["picked"]:
        return absent("No clip was scored, so there is none to show.")
    records = by_clip(evaluation)
    by_pair = {(video.row, video.clip_id): video for video in videos}
    rows: dict[str, dict[str, list[Pick]]] = {}
    for pick in scores["picked"]:
        rows.setdefault(pick["row"], {}).setdefault(pick["clip_id"], []).append(pick)
    parts = []
    for row, chosen in rows.items():
        shown = [_clip(records.get(name), by_pair.get((row, name)), picks) for name, picks in chosen.items()]
        parts.append(join(el("h3", row, class_="above") if len(rows) > 1 else None, shown))
    text = (
        "Chosen by MPJPE. Videos run in model time, 15 frames per second: in-the-wild video is slowed to half its speed. The generated "
        "hands lie over the true moving video, of which the model is shown the first frame alone."
    )
    return join(about(text), _legend(), parts)


def _legend() -> Html:
    colors = {f"{HAND_NAMES[side]} hand": color for side, color in HAND_COLORS.items()}
    keys = [
        el("span", el("i", style=f"background: rgb{color}"), name, class_="key")
        for name, color in (*colors.items(), ("true hand, beside a generated one", TRUE_COLOR))
    ]
    play = el("label", el("input", type="checkbox", data_play=True), "play all")
    return el("div", el("span", keys), play, class_="tools")


def _clip(record: ClipRecord | None, video: ClipVideo | None, picks: Sequence[Pick]) -> Html:
    first = picks[0]
    kinds = [badge(kind, KINDS.get(kind, "")) for kind in dict.fromkeys(pick["kind"] for pick in picks)]
    facts = [DOMAIN_NAMES.get(first["domain"], first["domain"])]
    words = "(not among the evaluated clips)"
    if record is not None:
        words = record.instruction or "(no instruction)"
        seconds = record.chunks * CHUNK_SECONDS
        facts += [record.source, record.task_type.replace("_", " "), f"{seconds:g} s"]
    return el(
        "div",
        el("p", kinds, " ", words, class_="words"),
        el("p", " · ".join(facts), " · ", el("code", first["clip_id"]), class_="facts"),
        _video(video),
        el("p", _scores(first["scores"]), class_="facts"),
        class_="clip",
    )


def _scores(scores: Mapping[str, float | None]) -> Html:
    """Scores of one clip in a line."""
    shown = [
        join(
            " · " if place else None,
            label_of(metric),
            " ",
            "n/a" if value is None else f"{value:.2f} {unit_of(metric)}",
        )
        for place, (metric, value) in enumerate(scores.items())
    ]
    return join(shown)


def _video(video: ClipVideo | None) -> Html:
    if video is None:
        return absent("No video was made of this clip.")
    if video.problem is not None:
        return absent("There is no video: ", video.problem)
    # The captions keep to their panels at any width.
    columns = " ".join(f"{panel.width + GAP}fr" for panel in video.panels)
    note = None
    if video.frames < video.total:
        note = el("p", f"The first {video.frames / MODEL_FPS:g} of {video.total / MODEL_FPS:g} s.", class_="facts")
    picture = el(
        "video",
        src=video.uri,
        poster=video.poster,
        width=video.width,
        height=video.height,
        controls=True,
        loop=True,
        muted=True,
        playsinline=True,
        preload="auto",
        aria_label=f"{video.clip_id}: {', '.join(panel.caption for panel in video.panels)}",
    )
    captions = [el("span", panel.caption) for panel in video.panels]
    return el(
        "figure",
        el("figcaption", captions, style=f"grid-template-columns: {columns}"),
        picture,
        note,
        class_="panels",
    )
