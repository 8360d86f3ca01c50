"""The page of a motion evaluation: one HTML file that needs no network. Tables, breakdowns, videos, latent space, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from jala_ray.evaluation.records import Evaluation
from jala_ray.reports.kit.clip_videos import ClipVideo
from jala_ray.reports.kit.figures import Charts
from jala_ray.reports.kit.findings import Finding, counted, warning_list
from jala_ray.reports.kit.html import Html, el, join, page
from jala_ray.reports.kit.widgets import absent, badge, number, tile
from jala_ray.reports.motion.clips import picked_clips
from jala_ray.reports.motion.joint import joint_maps
from jala_ray.reports.motion.latents import latent_space
from jala_ray.reports.motion.provenance import facts_list, failure_list
from jala_ray.reports.motion.tables import (
    DOMAIN_NAMES,
    FLOOR,
    Cell,
    PageScores,
    breakdown,
    check_scores,
    domains,
    headline,
    horizon,
    label_of,
    limits,
    look_up,
    references,
)
from jala_ray.reports.warnings import Agreement, evaluation_findings

HEADLINE = ("mpjpe", "pa_mpjpe")
"""Metrics of the tiles."""


def motion_page(
    evaluation: Evaluation,
    scores: Mapping[str, object],
    videos: Sequence[ClipVideo],
    latents: Mapping[str, Mapping[str, object] | str] | None = None,
    joint: Mapping[str, Mapping[str, object] | str] | None = None,
) -> str:
    """The document. `scores` is a `tables.PageScores`; `videos` are those of picked clips; `latents` has each model's
    `latents.PageLatents` by its label, or why there is none, and `joint` its `joint.Joint` by the same label.

    A section without anything to show says so. Raises UserError for keys of what is given that are missing or unknown.
    """
    known = check_scores(scores)
    charts, findings = Charts(), findings_of(known, latents, joint)
    content = [
        ("warnings", "Warnings", warning_list(findings) if findings else absent("Nothing stands out.")),
        ("errors", "Errors", headline(known)),
        ("breakdown", "Breakdown", breakdown(known, charts)),
        ("horizon", "Over the horizon", horizon(known, charts)),
        ("clips", "Clips", picked_clips(evaluation, known, videos)),
        ("latents", "Latent space", latent_space(latents or {}, charts)),
        ("joint", "Map of h and z", joint_maps(joint, charts)),
        ("failures", "Failures", failure_list(evaluation)),
        ("facts", "Facts", facts_list(evaluation)),
    ]
    name = evaluation.manifest.rstrip("/").rpartition("/")[2] or evaluation.manifest
    failed = sum(clip.failure is not None for clip in evaluation.clips)
    title = el(
        "div",
        el("h1", name),
        badge(f"{failed:,} failed", "warn") if failed else None,
        counted(findings),
        class_="title",
    )
    lede = f"{evaluation.manifest} · {', '.join(known['models']) or 'no model'}"
    header = join(
        el("p", "Hand motion evaluation", class_="kicker"),
        title,
        el("p", lede, class_="lede"),
        el("div", _tiles(evaluation, known), class_="tiles"),
    )
    return page(f"{name} · Hand motion evaluation", header, content, charts.figures)


def findings_of(
    scores: PageScores,
    latents: Mapping[str, Mapping[str, object] | str] | None = None,
    joint: Mapping[str, Mapping[str, object] | str] | None = None,
) -> list[Finding]:
    """Warnings of an evaluation, the serious ones first."""
    spaces, maps = (
        {model: found for model, found in (given or {}).items() if not isinstance(found, str)}
        for given in (latents, joint)
    )
    retrievals = {model: cast("Mapping[str, object] | None", space.get("retrieval")) for model, space in spaces.items()}
    agreements = {model: cast("Agreement", found["agreement"]) for model, found in maps.items()}
    groups = {model: cast("Mapping[str, Mapping[str, float | None]]", found["groups"]) for model, found in maps.items()}
    varying = {model: {name: size.get("varying_h") for name, size in found.items()} for model, found in groups.items()}
    return evaluation_findings(scores["models"], scores["table"], retrievals, agreements, varying)


def _tiles(evaluation: Evaluation, scores: PageScores) -> list[Html]:
    done = [clip for clip in evaluation.clips if clip.failure is None]
    chunks = sum(clip.chunks for clip in done)
    tiles = [
        _tile(scores, domain, metric)
        for metric in HEADLINE
        if metric in scores["metrics"]
        for domain in domains(scores)
    ]
    return [*tiles, tile("Clips", number(len(done)), join(number(chunks), " s of motion"))]


def _tile(scores: PageScores, domain: str, metric: str) -> Html:
    """The best model in one number, against the best trivial baseline."""
    title = f"{label_of(metric)}, {DOMAIN_NAMES.get(domain, domain)}"
    best = _lowest(scores, scores["models"], domain, metric)
    if best is None:
        return tile(title, "n/a", "no model was scored")
    model, found, mean = best
    shown_limits = limits(found)
    between = f", {shown_limits[0]:.2f} – {shown_limits[1]:.2f}" if shown_limits else ""
    trivial = _lowest(scores, [row for row in references(scores) if not row.startswith(FLOOR)], domain, metric)
    mark = None
    if trivial is not None and trivial[2] > 0:
        name, _, error = trivial
        share = mean / error - 1
        words = f"{abs(share):.0%} {'below' if share < 0 else 'above'} {name}"
        mark = badge(words, "good" if share < 0 else "bad")
    shown = el("span", f"{mean:,.2f} cm", title=repr(mean))
    return tile(title, shown, join(f"{model}{between}", el("br") if mark else None, mark))


def _lowest(scores: PageScores, rows: Sequence[str], domain: str, metric: str) -> tuple[str, Cell, float] | None:
    """The row with the smallest mean, its cell and that mean."""
    found = []
    for row in rows:
        cell = look_up(scores["table"], row, domain, metric)
        if cell is not None and cell["mean"] is not None:
            found.append((row, cell, cell["mean"]))
    return min(found, key=lambda item: item[2], default=None)
