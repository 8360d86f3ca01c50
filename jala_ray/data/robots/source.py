"""Samples of robot sets: a frame of an episode, with the episode's signals and pictures of its cameras at that moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from jala_ray.data.robots.films import Films, Shot, Visit, shots_of
from jala_ray.data.robots.rows import KEPT_BYTES, EpisodeRows, RowReader
from jala_ray.data.robots.sets import Anchor, RobotSet, RobotSets, open_sets
from jala_ray.data.samples.source import READERS, BadRow, Look, Pictures, Sample, Source
from jala_ray.storage import StorageOptions
from jala_ray.types import HandState, ManifestError, Signal, UserError, VideoError

if TYPE_CHECKING:
    from jala_ray.data.samples.assets import Assets
    from jala_ray.data.sampling.plan import PlanRow

TASK = "control"
"""Task type of every row."""
_ABSENT = (HandState.ABSENT, HandState.ABSENT)


class RobotSource:
    """`Source` over robot sets: row `i` is frame `i` of all of their episodes, one after another (`RobotSets.first`)."""

    def __init__(
        self,
        sets: RobotSets,
        assets: Assets,
        options: StorageOptions | None = None,
        signals: Sequence[str] | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        """`signals`: names of those that samples have; None: all. `kept_bytes`: of decoded columns."""
        self.sets, self.assets, self.options = sets, assets, options
        self.reader, self.films = RowReader(signals, kept_bytes), Films(options)
        self._coming: dict[tuple[int, int], Future[EpisodeRows]] = {}

    @cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(READERS, thread_name_prefix="fetch")

    # --- rows --------------------------------------------------------------------------------------------------------

    def expect(self, rows: Iterable[PlanRow]) -> None:
        for row in rows:
            which, episode, _ = self.sets.anchor(row.index)
            if (which, episode) not in self._coming:
                of = self.sets.sets[which]
                self._coming[which, episode] = self._readers.submit(self.reader.episode, of, episode)

    def samples(self, rows: Sequence[PlanRow]) -> list[Sample | BadRow]:
        self.expect(rows)
        anchors = [self.sets.anchor(row.index) for row in rows]
        read = {place: self._episode(*place) for place in dict.fromkeys((at.set, at.episode) for at in anchors)}
        return [self._sample(row.index, at, read[at.set, at.episode]) for row, at in zip(rows, anchors, strict=True)]

    def _episode(self, which: int, episode: int) -> _Episode | UserError:
        of = self.sets.sets[which]
        try:
            found = self._coming.pop((which, episode)).result()
            names = of.signals if self.reader.wanted is None else self.reader.wanted
            return _Episode(found, {name: found.signal(of, name) for name in names})
        except UserError as error:
            return error

    def _sample(self, row: int, at: Anchor, read: _Episode | UserError) -> Sample | BadRow:
        of = self.sets.sets[at.set]
        name = f"{of.name}/{of.episodes.number[at.episode]:06d}"
        try:
            if isinstance(read, UserError):
                raise read
            words, seconds = _instruction(of, at, read.rows), of.seconds(at.episode)
        except UserError as error:
            return BadRow(name, error)
        codes = np.zeros((2, 0, 0 if self.assets.motion is None else self.assets.motion.K), np.int64)
        return Sample(
            *(name, TASK, _ABSENT, np.zeros((2, 0), bool), codes, (words,), "", seconds, row),
            signals=read.signals,
            at_s=float(read.rows.time_s[at.frame]),
            embodiment=of.embodiment,
        )

    # --- pictures ----------------------------------------------------------------------------------------------------

    def pictures(self, looks: Sequence[Look]) -> Iterator[Pictures | UserError]:
        """Pictures of the views that are asked for, of the first camera where none is; all of a film's are read and decoded in one pass."""
        asked = [self._asked(look) for look in looks]
        films: dict[str, list[Shot]] = {}
        for shot in sorted({shot for shots in asked if not isinstance(shots, UserError) for shot in shots}):
            films.setdefault(shot.film, []).append(shot)
        visits = [self._readers.submit(self.films.visit, film, shots) for film, shots in films.items()]
        return self._seen(looks, asked, visits)

    def _asked(self, look: Look) -> list[Shot] | UserError:
        if not look.image:
            return []
        try:
            if look.boundaries or look.pairs:
                expected = "an objective that looks by views: robot sets have no chunks of hand motion"
                raise VideoError(f"frames of {look.sample.clip_id}", list(look.boundaries), expected)
            views = look.views or {"": (look.sample.at_s or 0.0,)}
            at = self.sets.anchor(look.sample.row)
            return [
                shot
                for view, times in views.items()
                for shot in shots_of(self.sets.sets[at.set], at.episode, view, times)
            ]
        except UserError as error:
            return error

    def _seen(
        self, looks: Sequence[Look], asked: Sequence[list[Shot] | UserError], visits: Sequence[Future[Visit]]
    ) -> Iterator[Pictures | UserError]:
        side, shown = self.assets.spec.image_size, dict[Shot, np.ndarray | UserError]()
        for visit in visits:
            shown |= self.films.pictures(visit.result(), (side, side))
        for look, shots in zip(looks, asked, strict=True):
            yield shots if isinstance(shots, UserError) else _own(look, [shown[shot] for shot in shots])

    def blank(self) -> Pictures:
        spec = self.assets.spec
        return {
            "image": np.zeros((3, spec.image_size, spec.image_size), np.uint8),
            "frames": np.zeros((1, 3, spec.frame_size, spec.frame_size), np.uint8),
        }


@dataclass(frozen=True, eq=False)
class _Episode:
    rows: EpisodeRows
    signals: Mapping[str, Signal]


def _instruction(of: RobotSet, at: Anchor, rows: EpisodeRows) -> str:
    """The words of the frame's task. Raises `ManifestError` where nothing says them."""
    number = None if rows.task is None else int(rows.task[at.frame])
    if number is not None and number in of.tasks:
        return of.tasks[number]
    episode = of.episodes.number[at.episode]
    remedy = "Its rows have no column task_index." if number is None else "meta/ lacks a task."
    known = f"one of {len(of.tasks)} tasks of {of.base}"
    raise ManifestError(f"task of episode {episode} of {of.name}, frame {at.frame}", number, known, remedy)


def _own(look: Look, shown: Sequence[np.ndarray | UserError]) -> Pictures | UserError:
    pictures = list[np.ndarray]()
    for one in shown:
        if isinstance(one, UserError):
            return one
        pictures.append(one)
    if not look.image:
        return {}
    return {"image": np.stack(pictures) if look.views else pictures[0]}


@dataclass(frozen=True)
class OpenRobots:
    """`steps.ShareBuilder.open_source` for robot sets. Workers read `meta/` themselves, once per process: it may name 100,000 episodes."""

    sets: tuple[tuple[str, str], ...]
    digest: str
    """Of what the run's driver read there."""
    assets: str
    options: StorageOptions
    signals: tuple[str, ...]
    kept_bytes: int = KEPT_BYTES

    def __call__(self) -> tuple[Source, Assets]:
        return _open_robots(self)


@lru_cache(maxsize=2)
def _open_robots(opener: OpenRobots) -> tuple[Source, Assets]:
    from jala_ray.data.samples.assets import Assets  # not for Ray's coordinating processes, as in `steps.OpenManifest`

    sets = open_sets(opener.sets, opener.options)
    if sets.digest != opener.digest:
        remedy = "One of them was changed after the run began, or this machine sees another folder."
        raise ManifestError("data.robot_sets", sets.digest, f"sets of the digest {opener.digest}", remedy)
    assets = Assets.open(opener.assets, opener.options)
    return RobotSource(sets, assets, opener.options, opener.signals, opener.kept_bytes), assets
