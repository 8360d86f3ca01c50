"""Pictures of many episodes at once: every film is visited once, its frames in the order of their times."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jala_ray.data.robots.recent import Recent
from jala_ray.data.robots.sets import RobotSet
from jala_ray.storage import StorageOptions
from jala_ray.types import UserError, VideoError
from jala_ray.video.picture import Picture, Size
from jala_ray.video.whole import FilmIndex, index_film

KEPT_BYTES = 64 * 2**20
"""Of packet indices, of one process: 36 bytes a frame."""
_log = logging.getLogger(__name__)


class Shot(NamedTuple):
    """One picture that is asked for."""

    film: str
    """Address of the file."""
    time_s: float
    """Presentation time in it."""
    first_s: float
    """The episode's span in it."""
    end_s: float
    told: str
    """Which episode of which set, for messages."""


@dataclass
class Visit:
    """What is on its way of one film."""

    index: FilmIndex | None = None
    places: dict[Shot, int] = field(default_factory=dict)
    errors: dict[Shot, UserError] = field(default_factory=dict)
    packets: dict[int, bytes] | None = None


class Films:
    """Films that were opened, each once as long as its index is kept. Threads may share it."""

    def __init__(self, options: StorageOptions | None = None, kept_bytes: int = KEPT_BYTES) -> None:
        self.options, self.kept = options, Recent(kept_bytes)
        self._warned = set[str]()

    def index(self, film: str) -> FilmIndex:
        """Raises as `index_film`."""
        return self.kept.get(film, lambda: index_film(film, self.options), lambda index: index.nbytes)

    def visit(self, film: str, shots: Sequence[Shot]) -> Visit:
        """Find the frames of one film and fetch their packets. What is wrong with a shot is told of that shot alone."""
        found = Visit()
        try:
            found.index = self.index(film)
        except UserError as error:
            found.errors = {shot: of_episode(error, shot) for shot in shots}
            return found
        for shot in shots:
            try:
                found.places[shot] = self._place(found.index, shot)
            except VideoError as error:
                found.errors[shot] = of_episode(error, shot)
        try:
            found.packets = found.index.fetch(list(found.places.values()), self.options)
        except UserError as error:
            found.errors |= {shot: of_episode(error, shot) for shot in found.places}
            found.places = {}
        return found

    def _place(self, index: FilmIndex, shot: Shot) -> int:
        place, off_s = index.nearest(shot.time_s, shot.first_s, shot.end_s)
        if abs(off_s) > index.period_s / 2 + 1e-4 and shot.film not in self._warned:
            self._warned.add(shot.film)
            told = f"{shot.told}: its row at {shot.time_s:.4f} s has no frame within half a frame, the nearest lies"
            _log.warning("%s %+.4f s off in %s. `jala inspect` shows more.", told, off_s, shot.film)
        return place

    def pictures(self, visit: Visit, size: Size | None) -> dict[Shot, np.ndarray | UserError]:
        """(3, h, w) uint8 upright RGB of every shot of a visit, squashed to `size` if there is one, or why there is none."""
        shown: dict[Shot, np.ndarray | UserError] = dict(visit.errors)
        if visit.index is None or not visit.places:
            return shown

        def convert(picture: Picture) -> np.ndarray:
            return np.ascontiguousarray(picture.rgb(size).transpose(2, 0, 1))

        decoded = visit.index.decode(visit.packets, list(visit.places.values()), convert, self.options)
        for shot, place in visit.places.items():
            found = decoded[place]
            shown[shot] = of_episode(found, shot) if isinstance(found, VideoError) else found
        return shown


def shots_of(of: RobotSet, episode: int, view: str, times_s: Sequence[float]) -> list[Shot]:
    """Of a view of one episode (its place in the set) at seconds after its beginning.

    Raises `VideoError` for a camera that the set has not, and a time outside the episode by more than half a frame.
    """
    film, begin = of.film(of.camera(view), episode)
    span, told = of.seconds(episode), f"episode {of.episodes.number[episode]} of {of.name}"
    slack = of.info.period_s / 2
    for time in times_s:
        if not -slack <= time <= span + slack:
            raise VideoError(f"time in {told}", float(time), f"seconds after its beginning, from 0 to {span:g}")
    return [Shot(film, begin + float(time), begin, begin + span, told) for time in times_s]


def of_episode(error: UserError, shot: Shot) -> VideoError:
    """The same, which names the episode as well as the file."""
    return VideoError(f"{shot.told}: {error.field}", error.value, error.expected, error.remedy)
