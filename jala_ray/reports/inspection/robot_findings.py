"""What deserves a second look in a robot set, before it is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from jala_ray.data.robots.census import IDLE, EpisodeFacts, RobotCensus
from jala_ray.data.robots.modality import WHOLE
from jala_ray.data.robots.rows import KEPT_BYTES
from jala_ray.reports.kit.findings import Finding, worst_first

GRID_S = 1e-3
"""A row's time further off the grid than this is no rounding of float32."""
IDLE_S = 1.0
"""An episode whose ends are still for longer has frames that teach standing still."""
GROUPED = 8
"""Row groups of more episodes than so many cost more to decode than they are worth."""
NAMED = 3
"""Episodes, files and dimensions that a finding names."""


def find_in(census: RobotCensus, absent: Sequence[str]) -> list[Finding]:
    """Worst first. `absent`: Parquet files that the set names and a listing does not have."""
    found = [*_files(census, absent), *_times(census), *_films(census), *_signals(census), *_episodes(census)]
    return worst_first(found)


def _named(items: Sequence[object]) -> str:
    more = f" and {len(items) - NAMED:,} more" if len(items) > NAMED else ""
    return ", ".join(str(item) for item in items[:NAMED]) + more


def _files(census: RobotCensus, absent: Sequence[str]) -> Iterator[Finding]:
    if absent:
        text = f"{len(absent):,} Parquet files that meta/ names are not there."
        yield Finding("bad", text, "Rows of their episodes will be set aside.", _named(absent))
    if census.unreadable:
        text = f"{len(census.unreadable):,} episodes or their films, of those looked at, can't be read."
        yield Finding("bad", text, "Their rows will be set aside, with these reasons.", _named(census.unreadable))
    whole, length = census.row_bytes * int(census.of.episodes.length.sum()), int(np.median(census.of.episodes.length))
    if whole > KEPT_BYTES and census.group_rows > GROUPED * length:
        text = f"Row groups hold up to {census.group_rows:,} rows, of episodes of about {length:,}."
        detail = f"They are decoded whole: write them anew, one an episode, or raise --data.kept-rows-mb to {whole // 2**20 + 1:,}."
        yield Finding("warn", text, detail, f"state and action take {whole / 2**20:,.0f} MiB")
    for note in census.of.notes:
        yield Finding("warn", f"{note}.")


def _times(census: RobotCensus) -> Iterator[Finding]:
    period = census.of.info.period_s
    off = [facts for facts in census.episodes if facts.off_grid_s > max(GRID_S, 0.05 * period)]
    if off:
        worst = max(off, key=lambda facts: facts.off_grid_s)
        text = f"In {_of(off, census)} rows do not come every {period * 1e3:.4g} ms, as info.json says."
        detail = "Signals are looked up by the time that each row has; a policy acts at the rate of info.json."
        figure = f"up to {worst.off_grid_s * 1e3:.1f} ms off in episode {worst.number}, longest gap {worst.gap_s * 1e3:.1f} ms"
        yield Finding("bad" if worst.off_grid_s > period / 2 else "warn", text, detail, figure)
    late = [facts for facts in census.episodes if abs(facts.begin_s) > period / 4]
    if late:
        text = f"In {_of(late, census)} the first row is not at 0 s, so that it shows another frame than the first."
        figure = f"{late[0].begin_s:.4f} s in episode {late[0].number}"
        yield Finding("warn", text, "As recorded; the last row may have no frame of its own.", figure)


def _films(census: RobotCensus) -> Iterator[Finding]:
    half = census.of.info.period_s / 2
    for camera in census.of.cameras:
        mine = [film for film in census.films if film.camera == camera]
        off = [film for film in mine if film.most_off_s > half + 1e-4]
        if off:
            worst = max(off, key=lambda film: film.most_off_s)
            text = f"{camera}: in {len(off):,} of {len(mine):,} episodes a row's nearest frame is more than half a frame away."
            detail = "Times of rows and film disagree: pictures of other moments would be learned."
            figure = f"episode {worst.number}: {worst.first_off_s:+.4f} s at its first row, {worst.last_off_s:+.4f} s at its last"
            yield Finding("bad", text, detail, figure)
        unequal = [film for film in mine if film.frames != film.rows]
        if unequal:
            text = f"{camera}: {len(unequal):,} of {len(mine):,} episodes have another number of frames than of rows."
            shown = [f"{film.frames} frames for {film.rows} rows in episode {film.number}" for film in unequal]
            yield Finding(
                "warn", text, "Frames were dropped or doubled, or the film runs at another rate.", _named(shown)
            )


def _signals(census: RobotCensus) -> Iterator[Finding]:
    for name, facts in census.signals.items():
        if facts.missing:
            text = f"{name}: {facts.missing:,} rows have no finite value."
            yield Finding("bad", text, "They count as not measured: padded in samples, left out of statistics.")
        if len(facts.kinds) > 1:
            yield Finding("bad", f"{name} has several types.", "A run refuses it.", _named(list(facts.kinds)))
        if facts.constant and name in WHOLE.values():
            text = f"{name}: {len(facts.constant)} of {len(facts.low)} dimensions never change."
            yield Finding("warn", text, "They are 0 after normalisation.", f"dimensions {_named(facts.constant)}")
    same = [facts for facts in census.episodes if facts.action_is_state]
    if same:
        text = f"In {_of(same, census)} action equals observation.state in every row."
        detail = "A policy would learn to say where it is; commands may have been lost when the set was written."
        yield Finding("bad", text, detail)


def _episodes(census: RobotCensus) -> Iterator[Finding]:
    unknown = [facts for facts in census.episodes if facts.unknown_task]
    if unknown:
        text = f"In {_of(unknown, census)} rows name a task that meta/ does not have."
        yield Finding("bad", text, "Such rows will be set aside.", f"episodes {_named([f.number for f in unknown])}")
    empty = [number for number, words in census.of.tasks.items() if not words.strip()]
    if empty:
        yield Finding("warn", f"{len(empty)} tasks have no words.", "", f"tasks {_named(empty)}")
    still = [facts for facts in census.episodes if max(facts.idle) > IDLE_S * census.of.info.fps]
    if still:
        text = f"In {_of(still, census)} nothing moves for over {IDLE_S:g} s at an end."
        detail = f"A policy learns to stand still from them; --data.trim-idle {IDLE:g} leaves such frames out."
        ends = np.array([facts.idle for facts in still])
        yield Finding(
            "warn", text, detail, f"up to {ends[:, 0].max()} frames at the beginning, {ends[:, 1].max()} at the end"
        )
    repeated = [words for words, count in Counter(census.of.tasks.values()).items() if count > 1]
    if repeated:
        yield Finding("warn", f"{len(repeated)} instructions stand under several numbers.", "", _named(repeated))


def _of(some: Sequence[EpisodeFacts], census: RobotCensus) -> str:
    return f"{len(some):,} of {len(census.episodes):,} episodes"
