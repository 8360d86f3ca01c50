"""The inspection page: one self-contained HTML file that shows a manifest before anything is trained on it.

    jala inspect MANIFEST [--out PAGE.html] [--samples 24] [--seed 0]

Counts come from the index columns of all rows; motion, frames and text from a sample that the seed draws, evenly over sources and
task types. Only the sample's rows and boundary frames are read, so a manifest of millions takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from jala_ray import storage
from jala_ray.data.manifest.files import page_file
from jala_ray.data.manifest.table import Manifest
from jala_ray.reports.inspection import pictures, sections
from jala_ray.reports.inspection.census import Census, in_turns, take_census
from jala_ray.reports.inspection.findings import find
from jala_ray.reports.inspection.motion import Outlier, measure, outliers
from jala_ray.reports.inspection.parts import count, duration, percent, share
from jala_ray.reports.inspection.quarantine import Quarantine, read_quarantine
from jala_ray.reports.inspection.sample import look_at, read_clips
from jala_ray.reports.inspection.signals import signals
from jala_ray.reports.kit.figures import Charts
from jala_ray.reports.kit.findings import Finding, warning_list
from jala_ray.reports.kit.html import Html, el, join, page
from jala_ray.reports.kit.widgets import absent, badge, tile
from jala_ray.types import Clip, UserError

MEASURED = 240
"""Labelled clips whose motion is measured, at least; more where there are many sources."""
MEASURED_EACH = 30
"""Of every source, if it has so many."""
ODD = 4
"""Outliers shown with their frames."""


def write_inspection(
    manifest: Manifest | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    samples: int = 24,
    seed: int = 0,
) -> Path:
    """Write the page of a manifest to `out` and return its path.

    Default: `inspect.html` in a folder manifest, `NAME.inspect.html` beside a single file, in the working folder for one on a bucket.
    `samples`: clips on the contact sheet. A clip or video that cannot be read appears with the reason.
    Raises UserError for samples < 1 or a manifest that cannot be opened.
    """
    if samples < 1:
        raise UserError("samples", samples, "1 or more")
    manifest = manifest if isinstance(manifest, Manifest) else Manifest(manifest)
    path = Path(storage.local_path(out)) if out is not None else default_page(manifest.path)
    census = take_census(manifest, samples, MEASURED, seed)
    measured = in_turns(census.moving)[: max(MEASURED, MEASURED_EACH * len(census.moving))]
    # A clip may be drawn for several of its task types, so there are spare rows.
    drawn = in_turns(census.sheet)[: 4 * samples]
    clips, unreadable = read_clips(manifest, [*measured, *drawn])
    motions = [measure(row, clips[row]) for row in measured if row in clips]
    beyond = outliers(motions)
    shown = _each_once(clips, drawn, samples)
    looks = look_at(shown)
    odd = look_at(_odd(clips, beyond, {clip.clip_id for clip in shown.values()}))
    quarantine = read_quarantine(manifest)
    findings = find(census, list(clips.values()), unreadable, [*looks, *odd], motions, beyond, quarantine)
    charts = Charts()
    content = [
        ("warnings", "Warnings", warning_list(findings) if findings else absent("Nothing stands out.")),
        ("makeup", "Make-up", sections.makeup(census)),
        ("sources", "Sources", sections.sources(census, list(clips.values()), [*looks, *odd])),
        ("hands", "Lengths and hands", sections.lengths_and_hands(census, charts)),
        ("motion", "Motion", pictures.motion(motions, beyond, charts)),
        *([("signals", "Signals", signals(clips.values()))] if any(clip.signals for clip in clips.values()) else []),
        ("sheet", "Contact sheet", pictures.sheet(looks, odd, unreadable, len(census.sheet), beyond)),
        ("quarantine", "Quarantined rows", sections.quarantine(quarantine)),
    ]
    name = manifest.path.rpartition("/")[2]
    header = join(
        el("p", "Manifest inspection", class_="kicker"),
        el("div", el("h1", name), _badges(findings), class_="title"),
        el(
            "p",
            f"{manifest.path} · {len(looks):,} clips drawn and {len(motions):,} measured, seed {seed}",
            class_="lede",
        ),
        el("div", _tiles(census, quarantine), class_="tiles"),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(page(f"{name} · Manifest inspection", header, content, charts.figures), "utf-8")
    fresh.replace(path)
    return path


def default_page(manifest: str) -> Path:
    page = Path(page_file(manifest))
    return (
        Path(f"{manifest.rpartition('/')[2].removesuffix('.parquet')}.inspect.html")
        if storage.is_s3(manifest)
        else page
    )


def _each_once(clips: dict[int, Clip], rows: Sequence[int], k: int) -> dict[int, Clip]:
    """The first `k` clips of some rows, in their order, none twice."""
    first: dict[str, int] = {}
    for row in rows:
        if row in clips:
            first.setdefault(clips[row].clip_id, row)
    return {row: clips[row] for row in islice(first.values(), k)}


def _odd(clips: dict[int, Clip], beyond: Sequence[Outlier], shown: set[str]) -> dict[int, Clip]:
    """The worst outliers that have a picture to look at and are not shown already."""
    rows = [
        outlier.row for outlier in beyond if clips[outlier.row].video_uri is not None and outlier.clip_id not in shown
    ]
    return _each_once(clips, rows, ODD)


def _badges(findings: Sequence[Finding]) -> list[Html]:
    bad = sum(finding.level == "bad" for finding in findings)
    notes = len(findings) - bad
    found = [badge(f"{bad} to look into", "bad")] if bad else []
    found += [badge(f"{notes} note{'s' if notes != 1 else ''}", "warn")] if notes else []
    return found or [badge("nothing stands out", "good")]


def _tiles(census: Census, quarantine: Quarantine) -> list[Html]:
    clips, rows = census.total(), census.total(first=False)["rows"]
    filmed = census.total(has_video=True)["rows"]
    chunks, both = clips["chunks"], clips["left_labelled"] + clips["right_labelled"]
    possible = clips["left_chunks"] + clips["right_chunks"]
    motion = clips["rows"] - filmed
    return [
        tile("Rows", count(rows), "clips by task"),
        tile("Clips", count(clips["rows"]), f"{motion:,} of them motion alone" if motion else "all with a video"),
        tile("Videos", count(census.videos), "files"),
        tile("Source time", duration(clips["source_s"]), "each clip once"),
        tile("Model time", duration(clips["model_s"]), "wild video slowed"),
        tile("Chunks", count(chunks), "whole seconds of model time"),
        tile(
            "Labelled left",
            count(clips["left_labelled"]),
            join(percent(share(clips["left_labelled"], chunks)), " of chunks"),
        ),
        tile(
            "Labelled right",
            count(clips["right_labelled"]),
            join(percent(share(clips["right_labelled"], chunks)), " of chunks"),
        ),
        tile("Lost to invalid frames", percent(share(possible - both, possible)), "of labelled hands' chunks"),
        tile("Quarantined", count(quarantine.rows), "rows set aside on writing"),
    ]
