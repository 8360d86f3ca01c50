"""What the rows and films of a robot set hold, of some of its episodes: for a page that is looked at before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jala_ray.data.robots.films import Films
from jala_ray.data.robots.modality import WHOLE
from jala_ray.data.robots.rows import EpisodeRows, RowReader
from jala_ray.data.robots.sets import RobotSet
from jala_ray.data.robots.split import joined_columns, moving
from jala_ray.types import Signal, UserError, VideoError

IDLE = 0.01
"""Movement below this share of a dimension's range counts as none."""


@dataclass
class ColumnFacts:
    """Of one column or named part."""

    kinds: Counter[str] = field(default_factory=Counter)
    values: int = 0
    missing: int = 0
    """Rows without a finite value."""
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(D,) each."""

    def add(self, signal: Signal) -> None:
        values = np.asarray(signal.values)
        self.kinds[f"{values.dtype.name} {list(values.shape[1:])}"] += 1
        self.missing += int((~signal.usable).sum())
        flat = values[signal.usable].reshape(int(signal.usable.sum()), -1).astype(np.float64)
        self.values += len(flat)
        if len(flat) and len(self.low) in (0, flat.shape[1]):
            self.low = np.minimum(self.low, flat.min(0)) if len(self.low) else flat.min(0)
            self.high = np.maximum(self.high, flat.max(0)) if len(self.high) else flat.max(0)

    @property
    def constant(self) -> list[int]:
        """Dimensions that never change."""
        return np.flatnonzero(self.high - self.low <= 1e-9 * np.maximum(1.0, np.abs(self.high))).tolist()


@dataclass(frozen=True)
class EpisodeFacts:
    """Of one episode whose rows were read."""

    place: int
    number: int
    rows: int
    begin_s: float
    """Time of its first row."""
    off_grid_s: float
    """Largest distance of a row's time from a grid of the data set's rate that begins with the first row."""
    gap_s: float
    """Longest time between two rows."""
    tasks: tuple[str, ...]
    unknown_task: bool
    action_is_state: bool
    idle: tuple[int, int] = (0, 0)
    """Frames at its beginning and end in which nothing moves."""


@dataclass(frozen=True)
class FilmFacts:
    """Of one camera's pictures of one episode."""

    camera: str
    number: int
    frames: int
    """In the episode's span."""
    rows: int
    first_off_s: float
    last_off_s: float
    """Of the frames nearest to the first and the last row, their times less the rows'."""
    most_off_s: float
    """Of all rows, the largest distance to the nearest frame."""


@dataclass
class RobotCensus:
    """Of some episodes of one set."""

    of: RobotSet
    episodes: list[EpisodeFacts] = field(default_factory=list)
    signals: dict[str, ColumnFacts] = field(default_factory=dict)
    films: list[FilmFacts] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """Why rows of an episode, or its pictures, can't be had."""
    row_bytes: int = 0
    """Of state and action, decoded."""
    group_rows: int = 0
    """Of the largest row group."""


def take_census(of: RobotSet, places: Sequence[int], films: Sequence[int]) -> RobotCensus:
    """Rows of the episodes `places`; frame times, without decoding, of those in `films`. Raises `StoreUnavailable`."""
    found, reader = RobotCensus(of, signals={name: ColumnFacts() for name in of.signals}), RowReader(None)
    times: dict[int, np.ndarray] = {}
    for place in places:
        try:
            rows = reader.episode(of, place)
            found.episodes.append(_episode(of, place, rows))
            times[place] = rows.time_s
            found.group_rows = max(found.group_rows, reader.largest_group(of, place))
            found.row_bytes = sum(
                rows.columns[name].values[0].nbytes for name in WHOLE.values() if name in rows.columns
            )
            for name, facts in found.signals.items():
                facts.add(rows.signal(of, name))
        except UserError as error:
            found.unreadable.append(str(error))
    _add_idle(found)
    seen = Films(of.options)
    for place in films:
        for camera in of.cameras:
            try:
                found.films.append(_film(of, place, camera, times.get(place), seen))
            except UserError as error:
                found.unreadable.append(str(error))
    return found


def _episode(of: RobotSet, place: int, rows: EpisodeRows) -> EpisodeFacts:
    time = rows.time_s
    grid = time[0] + np.arange(len(time)) * of.info.period_s
    numbers = np.unique(rows.task).tolist() if rows.task is not None else []
    state, action = (rows.columns.get(name) for name in WHOLE.values())
    same = state is not None and action is not None and np.array_equal(state.values, action.values)
    return EpisodeFacts(
        *(place, int(of.episodes.number[place]), len(time), float(time[0])),
        *(float(np.abs(time - grid).max()), float(np.diff(time).max(initial=0.0))),
        *(tuple(of.tasks[n] for n in numbers if n in of.tasks), any(n not in of.tasks for n in numbers), bool(same)),
    )


def _add_idle(found: RobotCensus) -> None:
    """By the range of the episodes that were read."""
    of = found.of
    columns = [name for name in WHOLE.values() if name in of.info.signals]
    ranges = [found.signals[name] for name in columns]
    if not columns or not all(len(facts.low) for facts in ranges):
        return
    least = IDLE * np.concatenate([facts.high - facts.low for facts in ranges])
    reader = RowReader(columns)
    for i, facts in enumerate(found.episodes):
        values = joined_columns(reader.episode(of, facts.place))
        if values.shape[1] == len(least):
            begin, end = moving(values, least)
            found.episodes[i] = replace(facts, idle=(begin, facts.rows - end))


def _film(of: RobotSet, place: int, camera: str, times: np.ndarray | None, seen: Films) -> FilmFacts:
    """Raises `VideoError` where the file doesn't open, or has no frame in the episode's span."""
    uri, begin = of.film(camera, place)
    index, rows, period = seen.index(uri), int(of.episodes.length[place]), of.info.period_s
    time = begin + (np.arange(rows) * period if times is None else times)
    low, high = index.span(begin, begin + rows * period)
    if low == high:
        told = f"episode {of.episodes.number[place]} of {of.name}: video {uri}"
        raise VideoError(told, "no frame", f"frames from {begin:.3f} s on")
    off = nearest_off(index.shown_s[low:high], time)
    facts = (float(off[0]), float(off[-1]), float(np.abs(off).max()))
    return FilmFacts(camera, int(of.episodes.number[place]), high - low, rows, *facts)


def nearest_off(shown: np.ndarray, time: np.ndarray) -> np.ndarray:
    """(T,) from each time to the nearest of (m,) ascending ones."""
    right = np.clip(np.searchsorted(shown, time), 1, max(1, len(shown) - 1))
    near = np.stack([shown[right - 1], shown[np.minimum(right, len(shown) - 1)]]) - time
    return np.take_along_axis(near, np.abs(near).argmin(0)[None], 0)[0]
