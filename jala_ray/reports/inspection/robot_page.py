"""The inspection page of a LeRobot data set: what its rows, episodes, tasks and cameras hold, before anything is trained on it.

    jala inspect FOLDER [--out PAGE.html] [--samples 24] [--seed 0]

Counts come from `meta/`; signals from the rows of episodes that the seed draws; pictures from a few of those, a few frames of every camera.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jala_ray import storage
from jala_ray.data.robots.census import IDLE, ColumnFacts, RobotCensus, take_census
from jala_ray.data.robots.films import Films, shots_of
from jala_ray.data.robots.sets import RobotSet, open_set
from jala_ray.reports.inspection.parts import barred, count, duration, histogram, number_text, percent, share, small
from jala_ray.reports.inspection.robot_findings import find_in
from jala_ray.reports.kit.figures import Charts
from jala_ray.reports.kit.findings import Finding, warning_list
from jala_ray.reports.kit.html import Html, el, join, page
from jala_ray.reports.kit.overlay import data_uri
from jala_ray.reports.kit.widgets import about, absent, badge, table, tile
from jala_ray.storage import StorageOptions
from jala_ray.types import UserError

ROWS_OF = 200
"""Episodes whose rows are read, at most."""
FRAMES = 4
"""Pictures of each camera and episode, evenly over it."""
HEIGHT = 108
TASKS = 40
"""Tasks that are listed, those with the most episodes first."""
SHOWN_DIMENSIONS = 60


def write_robot_inspection(
    address: str,
    out: str | os.PathLike[str] | None = None,
    *,
    samples: int = 24,
    seed: int = 0,
    options: StorageOptions | None = None,
) -> Path:
    """Write the page of a data set to `out` and return its path.

    Default: `NAME.inspect.html` beside a local folder, in the working folder for one on a bucket. `samples`: pictures' episodes and cameras
    together. An episode that can't be read appears with the reason. Raises UserError for samples < 1 or a folder that can't be opened.
    """
    if samples < 1:
        raise UserError("samples", samples, "1 or more")
    of = open_set(address, "inspected", options=options)
    path = Path(storage.local_path(out)) if out is not None else _default(of)
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.permutation(len(of.episodes))[:ROWS_OF]).tolist()
    looked = np.sort(rng.permutation(drawn)[: max(1, samples // max(1, len(of.cameras)))]).tolist()
    census = take_census(of, drawn, looked)
    findings, charts = find_in(census, _absent(of)), Charts()
    content = [
        ("warnings", "Warnings", warning_list(findings) if findings else absent("Nothing stands out.")),
        ("signals", "Signals", _signals(census)),
        ("episodes", "Episodes", _episodes(census, charts)),
        ("tasks", "Tasks", _tasks(census)),
        ("pictures", "Pictures", _pictures(census, looked)),
    ]
    header = join(
        el("p", "Robot data inspection", class_="kicker"),
        el("div", el("h1", of.name), _badges(findings), class_="title"),
        el("p", f"{of.base} · LeRobot {of.info.version} · rows of {len(drawn):,} episodes, seed {seed}", class_="lede"),
        el("div", _tiles(of), class_="tiles"),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(page(f"{of.name} · Robot data inspection", header, content, charts.figures), "utf-8")
    fresh.replace(path)
    return path


def _default(of: RobotSet) -> Path:
    name = f"{of.name.replace('/', '-')}.inspect.html"
    return Path(name) if storage.is_s3(of.base) else Path(of.base).with_name(name)


def _absent(of: RobotSet) -> list[str]:
    """Parquet files that are named and not there, each once."""
    there = storage.list_files(storage.join(of.base, "data"), of.options)
    prefix = len(storage.join(of.base, "data")) + 1
    named = dict.fromkeys(of.data_file(place)[prefix:] for place in range(len(of.episodes)))
    return [name for name in named if name not in there]


def _badges(findings: Sequence[Finding]) -> list[Html]:
    bad = sum(finding.level == "bad" for finding in findings)
    notes = len(findings) - bad
    found = [badge(f"{bad} to look into", "bad")] if bad else []
    found += [badge(f"{notes} note{'s' if notes != 1 else ''}", "warn")] if notes else []
    return found or [badge("nothing stands out", "good")]


def _tiles(of: RobotSet) -> list[Html]:
    frames = int(of.episodes.length.sum())
    return [
        tile(
            "Episodes",
            count(len(of.episodes)),
            f"{int(of.episodes.length.min()):,} to {int(of.episodes.length.max()):,} rows",
        ),
        tile("Frames", count(frames), f"{of.info.fps:g} a second"),
        tile("Time", duration(frames / of.info.fps), "recorded"),
        tile("Tasks", count(len(of.tasks)), "instructions"),
        tile("Cameras", count(len(of.cameras)), ", ".join(name.rpartition(".")[2] for name in of.cameras) or "none"),
        tile("Signals", count(len(of.info.signals)), f"{len(of.modality.parts)} named parts of them"),
    ]


# --- sections --------------------------------------------------------------------------------------------------------


def _signals(census: RobotCensus) -> Html:
    text = f"Of the rows of {len(census.episodes):,} episodes. A dimension's least and largest value; constant ones are marked."
    cells = []
    for name, facts in census.signals.items():
        part = census.of.modality.parts.get(name)
        told = f"{part.column}[{part.start}:{part.end}]" if part else ""
        named = el("span", name, el("br"), small(told)) if told else el("span", name)
        kinds = ", ".join(kind for kind, _ in facts.kinds.most_common()) or "unread"
        missing = percent(share(facts.missing, facts.missing + facts.values))
        cells.append([named, el("span", kinds), count(facts.values), missing, _ranges(facts)])
    head = ("Signal", "Type, shape", "Values", "Not finite", "Range by dimension")
    return join(about(text), table(head, cells, numbers=(2, 3)))


def _ranges(facts: ColumnFacts) -> Html:
    constant, shown = set(facts.constant), list[Html]()
    for i, (low, high) in enumerate(zip(facts.low[:SHOWN_DIMENSIONS], facts.high[:SHOWN_DIMENSIONS], strict=True)):
        text = f"{number_text(low)} always" if i in constant else f"{number_text(low)} to {number_text(high)}"
        title = f"dimension {i}: {float(low)!r} to {float(high)!r}"
        shown += [el("span", " · ")] if i else []
        shown.append(el("span", badge(text, "warn") if i in constant else text, title=title))
    more = len(facts.low) - SHOWN_DIMENSIONS
    return el("span", shown or small("no values"), small(f" … {more} more") if more > 0 else None)


def _episodes(census: RobotCensus, charts: Charts) -> Html:
    of = census.of
    lengths = of.episodes.length / of.info.fps
    chart = charts.place("Lengths", "of all episodes", histogram({"episodes": (lengths, "@c1")}, "s"))
    order = np.argsort(of.episodes.length, kind="stable")
    ends = [*order[:3], *[i for i in order[-3:] if i not in order[:3]]]
    numbers, rows = of.episodes.number, of.episodes.length
    cells = [[count(int(numbers[i])), count(int(rows[i])), duration(float(lengths[i]))] for i in ends]
    listed = el(
        "figure", el("h3", "Shortest and longest"), table(("Episode", "Rows", "Time"), cells, numbers=(0, 1, 2))
    )
    return join(el("div", chart, listed, class_="charts"), _idle(census))


def _idle(census: RobotCensus) -> Html:
    if not census.episodes:
        return absent("No rows could be read.")
    idle, rows = np.array([facts.idle for facts in census.episodes]), sum(facts.rows for facts in census.episodes)
    cells = []
    for where, frames in (("beginning", idle[:, 0]), ("end", idle[:, 1])):
        seconds = frames / census.of.info.fps
        shown = [duration(float(np.median(seconds))), duration(float(seconds.max()))]
        cells.append([el("span", where), *shown, barred(share(float(frames.sum()), rows))])
    text = f"Idle: state and action lie within {IDLE:.0%} of their ranges of the first, or the last, row."
    remedy = join(" With ", el("code", "data.trim_idle"), " such rows are not trained on.")
    return join(
        about(text, remedy), table(("Idle at the", "Median", "Longest", "Share of rows"), cells, numbers=(1, 2))
    )


def _tasks(census: RobotCensus) -> Html:
    counts = Counter(words for facts in census.episodes for words in facts.tasks)
    rows = [
        [el("span", words), count(number), barred(share(number, len(census.episodes)))]
        for words, number in counts.most_common(TASKS)
    ]
    unused = [words for words in census.of.tasks.values() if words not in counts]
    told = f"{len(census.of.tasks):,} tasks; {len(unused):,} of them in none of the episodes that were read."
    return join(
        about(told),
        table(("Instruction", "Episodes", "Share"), rows, numbers=(1,)) if rows else absent("No rows name one."),
    )


def _pictures(census: RobotCensus, places: Sequence[int]) -> Html:
    of = census.of
    if not of.cameras:
        return absent("There is no camera.")
    films = Films(of.options)
    text = f"{FRAMES} frames of {len(places):,} episodes, with their seconds after the episode's beginning."
    return join(about(text), [_strip(of, place, camera, films) for place in places for camera in of.cameras])


def _strip(of: RobotSet, place: int, camera: str, films: Films) -> Html:
    """Frames of one camera and episode, or why there are none."""
    times = np.linspace(0, (int(of.episodes.length[place]) - 1) / of.info.fps, FRAMES).tolist()
    try:
        shots = shots_of(of, place, camera, times)
        seen = films.pictures(films.visit(shots[0].film, shots), None)
        shown = [_figure(seen[shot], time) for shot, time in zip(shots, times, strict=True)]
    except UserError as error:
        shown = [_reason(error)]
    facts = el("p", f"episode {of.episodes.number[place]} · {camera}", class_="facts", style="margin:.6rem 0 0")
    return el("div", facts, el("div", shown, class_="strip", style="flex-wrap:wrap"))


def _figure(found: np.ndarray | UserError, time_s: float) -> Html:
    if isinstance(found, UserError):
        return _reason(found)
    image = Image.fromarray(np.ascontiguousarray(found.transpose(1, 2, 0)))
    width = max(1, round(image.width * 2 * HEIGHT / image.height))
    src = data_uri(image.resize((width, 2 * HEIGHT)))
    picture = el("img", src=src, alt=f"frame at {time_s:.2f} s", loading="lazy", style=f"height:{HEIGHT}px")
    return el("figure", picture, el("figcaption", f"{time_s:.2f} s"))


def _reason(error: UserError) -> Html:
    return el(
        "p", badge("unreadable", "bad"), " ", str(error), class_="absent", style="margin:0;overflow-wrap:anywhere"
    )
