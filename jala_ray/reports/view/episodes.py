"""Episodes of a LeRobot data set: all cameras, and every signal by the names of its dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jala_ray.data.robots.films import Films, shots_of
from jala_ray.data.robots.info import INFO, read_json
from jala_ray.data.robots.rows import RowReader
from jala_ray.data.robots.sets import RobotSet, open_set
from jala_ray.reports.view.recording import ViewWriter, Wanted, flat
from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError, UserError

AT_ONCE = 64
"""Pictures in memory."""


def episode_name(number: int) -> str:
    return f"episode_{number:06d}"


def dimension_names(of: RobotSet, signal: str, width: int) -> list[str]:
    """Of a signal laid flat; those of a part of modality.json are the column's."""
    part = of.modality.parts.get(signal)
    features = read_json(of.base, INFO, of.options)["features"]
    names = features.get(signal if part is None else part.column, {}).get("names")
    if part is None:
        return flat(names, width)
    whole = int(np.prod(of.info.signals[part.column]))
    return flat(flat(names, whole)[part.start : part.end], width)


def write_episodes(writer: ViewWriter, address: str, wanted: Wanted, options: StorageOptions | None = None) -> None:
    """Raises `ConfigError` for numbers that are none of the set's, `UserError` for rows or pictures that can't be read."""
    of = open_set(address, "viewed", options=options)
    reader, films = RowReader(tuple(of.info.signals)), Films(options)
    for place in chosen(of, wanted):
        name, rows = episode_name(int(of.episodes.number[place])), reader.episode(of, place)
        words = sorted({of.tasks.get(int(task), f"task {task}") for task in rows.task}) if rows.task is not None else []
        if words:
            writer.words([name, "task"], "\n".join(words))
        for signal in of.info.signals:
            found = rows.signal(of, signal)
            values = np.asarray(found.values, np.float64).reshape(len(found.values), -1)
            values = np.where(np.asarray(found.usable)[:, None], values, np.nan)
            called = dimension_names(of, signal, values.shape[1])
            writer.dimensions([name, signal], called, found.time_s, values)
        times = rows.time_s[:: wanted.every(of.info.fps)]
        for camera in of.cameras:
            write_camera(writer, [name, camera], of, place, times, wanted, films)


def chosen(of: RobotSet, wanted: Wanted) -> list[int]:
    """Places of episodes in the set."""
    numbers = of.episodes.number.tolist()
    if lacking := sorted(set(wanted.numbers) - set(numbers)):
        raise ConfigError("numbers", lacking, f"episodes of {of.base}, {numbers[0]} to {numbers[-1]}")
    if wanted.numbers:
        return [numbers.index(number) for number in wanted.numbers]
    return wanted.spread(len(numbers))


def write_camera(
    writer: ViewWriter,
    names: Sequence[str],
    of: RobotSet,
    place: int,
    times: np.ndarray,
    wanted: Wanted,
    films: Films,
) -> None:
    """The frames that training would take at these times."""
    size: tuple[int, int] | None = None
    for first in range(0, len(times), AT_ONCE):
        shots = shots_of(of, place, names[-1], times[first : first + AT_ONCE].tolist())
        visit = films.visit(shots[0].film, shots)
        if size is None:
            size = _size(films, shots[0].film, wanted)
        shown = films.pictures(visit, size)
        for shot, time_s in zip(shots, times[first:], strict=False):
            picture = shown[shot]
            if isinstance(picture, UserError):
                raise picture
            writer.picture(names, time_s, picture.transpose(1, 2, 0))


def _size(films: Films, film: str, wanted: Wanted) -> tuple[int, int]:
    from jala_ray.video.decode import probe

    info = probe(film, films.options)
    return wanted.size(info.height, info.width)
