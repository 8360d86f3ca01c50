"""LeRobot data sets opened for reading: everything that `meta/` says, and where rows and pictures of an episode lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jala_ray import storage
from jala_ray.data.robots.episodes import NOWHERE, Episodes, read_episodes, read_tasks
from jala_ray.data.robots.info import RobotInfo, read_info
from jala_ray.data.robots.modality import Modality, Part, read_modality
from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError, ManifestError, VideoError

ODD_CHUNK = "chunk-{episode_index"
"""Some data sets have this where `chunk-{episode_chunk` is meant."""


@dataclass(frozen=True, eq=False)
class RobotSet:
    """One data set. What is wrong with its `meta/` was said when it was opened."""

    name: str
    """The end of its address, by which it is told from the run's other sets."""
    base: str
    embodiment: str
    info: RobotInfo
    tasks: Mapping[int, str]
    episodes: Episodes
    modality: Modality
    options: StorageOptions | None = None

    @property
    def cameras(self) -> tuple[str, ...]:
        """LeRobot's keys of those that have pictures."""
        return tuple(self.episodes.footage)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is declared and not read, with the reason."""
        gone = (name for name in self.info.cameras if name not in self.episodes.footage)
        return (*self.info.notes, *(f"{name}: declared, but there are no files of it" for name in gone))

    @property
    def signals(self) -> tuple[str, ...]:
        """Names under which numbers of its rows are had."""
        return (*self.info.signals, *self.modality.parts)

    def part(self, name: str) -> Part | None:
        """Of a named part; None for a column. Raises `ConfigError` for what is neither."""
        if name in self.modality.parts:
            return self.modality.parts[name]
        if name not in self.info.signals:
            remedy = f"{self.base} has {', '.join(self.signals) or 'none'}."
            raise ConfigError(f"signals of the robot set {self.name}", name, "a numeric column or a named part", remedy)
        return None

    def column(self, name: str) -> str:
        """Of the Parquet files, that a signal is read from. Raises `ConfigError`."""
        part = self.part(name)
        return name if part is None else part.column

    def camera(self, view: str) -> str:
        """LeRobot's key of a view: itself, a name of modality.json, or "" for the first. Raises `VideoError`."""
        key = self.modality.cameras.get(view, view) if view else next(iter(self.cameras), "")
        if key not in self.episodes.footage:
            known = ", ".join([*self.cameras, *self.modality.cameras]) or "none"
            told = "; ".join(note for note in self.notes if note.startswith(f"{key}:"))
            raise VideoError(f"camera of the robot set {self.name}", view, f"one of {known}", told and f"{told}.")
        return key

    def data_file(self, episode: int) -> str:
        """Address of the Parquet file with an episode's rows, by its place in `episodes`."""
        return self._address(self.info.data_path, episode, self.episodes.chunk[episode], self.episodes.file[episode])

    def film(self, camera: str, episode: int) -> tuple[str, float]:
        """Address of a camera's file, and the presentation time at which the episode begins in it. Raises `VideoError`."""
        footage = self.episodes.footage[camera]
        if footage.file[episode] == NOWHERE:
            number = self.episodes.number[episode]
            raise VideoError(f"episode {number} of {self.name}", f"no pictures of {camera}", "a file and a time")
        place = footage.chunk[episode], footage.file[episode]
        return self._address(self.info.video_path, episode, *place, camera), float(footage.from_s[episode])

    def seconds(self, episode: int) -> float:
        return int(self.episodes.length[episode]) / self.info.fps

    def _address(self, template: str, episode: int, chunk: int, file: int, camera: str = "") -> str:
        number = int(self.episodes.number[episode])
        named = {"episode_chunk": number // self.info.chunk_size, "episode_index": number}
        try:
            path = template.format(**named, chunk_index=int(chunk), file_index=int(file), video_key=camera)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            expected = f"a template of {', '.join(named)}, chunk_index, file_index and video_key"
            raise ManifestError(f"{self.base}: path in info.json", template, expected) from error
        return storage.join(self.base, path)

    @cached_property
    def digest(self) -> str:
        """Of all that `meta/` says: of a set that was written anew it is another one, mostly."""
        said = [asdict(self.info), sorted(self.tasks.items()), asdict(self.modality), self.embodiment]
        hashed = hashlib.blake2b(json.dumps(said).encode(), digest_size=8)
        episodes, footage = self.episodes, self.episodes.footage
        arrays = [episodes.number, episodes.length, episodes.chunk, episodes.file, episodes.offset]
        arrays += [column for name in footage for column in vars(footage[name]).values()]
        for array in arrays:
            hashed.update(np.ascontiguousarray(array).tobytes())
        return hashed.hexdigest()


def open_set(address: str, embodiment: str, name: str = "", options: StorageOptions | None = None) -> RobotSet:
    """Raises `ManifestError` for what is no data set of a version that is read, `StorageError` where it can't be reached."""
    base = storage.absolute(address)
    info = read_info(base, options)
    episodes = read_episodes(base, info, options)
    found = RobotSet(
        *(name or base.rpartition("/")[2], base, embodiment, info, read_tasks(base, info, options), episodes),
        *(read_modality(base, info, options), options),
    )
    return _without_absent_cameras(_with_true_paths(found))


def _with_true_paths(found: RobotSet) -> RobotSet:
    info, last = found.info, len(found.episodes) - 1
    mended = {}
    for name in ("data_path", "video_path"):
        template = getattr(info, name)
        if ODD_CHUNK in template:
            fixed = replace(info, **{name: template.replace(ODD_CHUNK, "chunk-{episode_chunk")})
            tried = [replace(found, info=one) for one in (info, fixed)]
            uris = [one.data_file(last) if name == "data_path" else one.film(info.cameras[0], last)[0] for one in tried]
            mended |= {} if storage.exists(uris[0], found.options) else {name: getattr(fixed, name)}
    return replace(found, info=replace(info, **mended))


def _without_absent_cameras(found: RobotSet) -> RobotSet:
    """Cameras are declared now and then that were never stored."""
    there = {name: one for name, one in found.episodes.footage.items() if _stored(found, name)}
    return replace(found, episodes=replace(found.episodes, footage=there))


def _stored(found: RobotSet, camera: str) -> bool:
    """Whether the folder in which a camera's first file should lie holds any."""
    having = np.flatnonzero(found.episodes.footage[camera].file != NOWHERE)
    if not len(having):
        return False
    folder = found.film(camera, int(having[0]))[0].rpartition("/")[0]
    try:
        return bool(storage.list_dir(folder, found.options))
    except storage.MissingFile:
        return False


class Anchor(NamedTuple):
    """One frame of one episode."""

    set: int
    """Place in `RobotSets.sets`."""
    episode: int
    """Place in that set's `episodes`."""
    frame: int


@dataclass(frozen=True, eq=False)
class RobotSets:
    """The data sets of a run, by name. Their frames, one set and episode after another, are numbered through."""

    sets: tuple[RobotSet, ...]

    @cached_property
    def first(self) -> tuple[np.ndarray, ...]:
        """(E + 1,) int64 of each set: number of every episode's first frame, and of the next set's."""
        found, before = [], 0
        for one in self.sets:
            ends = before + np.cumsum([0, *one.episodes.length], dtype=np.int64)
            found.append(ends)
            before = int(ends[-1])
        return tuple(found)

    def anchor(self, number: int) -> Anchor:
        """Raises `ManifestError` for a number that no frame has."""
        begins = [int(ends[0]) for ends in self.first]
        which = int(np.searchsorted(begins, number, side="right")) - 1
        if which < 0 or number >= self.first[-1][-1]:
            raise ManifestError("frame", number, f"0 <= frame < {self.first[-1][-1]}", "The robot sets have changed.")
        episode = int(np.searchsorted(self.first[which], number, side="right")) - 1
        return Anchor(which, episode, int(number - self.first[which][episode]))

    @property
    def digest(self) -> str:
        said = "".join(f"{one.name}\0{one.base}\0{one.digest}\0" for one in self.sets)
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def open_sets(given: Sequence[tuple[str, str]], options: StorageOptions | None = None) -> RobotSets:
    """Of pairs (address, embodiment), in the order of their names. Raises as `open_set`, and where one embodiment has two rates."""
    addresses = [storage.absolute(address) for address, _ in given]
    opened = [
        open_set(address, embodiment, name, options)
        for address, (_, embodiment), name in zip(addresses, given, set_names(addresses), strict=True)
    ]
    found = RobotSets(tuple(sorted(opened, key=lambda one: one.name)))
    rates(found)
    return found


def set_names(addresses: Sequence[str]) -> list[str]:
    """Of data sets: the end of each address, of as many folders as tell all of them apart. Raises `ConfigError` for one named twice."""
    if len(set(addresses)) < len(addresses):
        twice = next(one for one in addresses if addresses.count(one) > 1)
        raise ConfigError("data.robot_sets", twice, "every data set once", "A larger share: --data.source-weights.")
    parts = [address.removeprefix("s3://").strip("/").split("/") for address in addresses]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return list(addresses)


def rates(found: RobotSets) -> dict[str, float]:
    """Embodiment -> rows per second. Raises `ConfigError` where its sets disagree: a policy has one rate."""
    first: dict[str, RobotSet] = {}
    for one in found.sets:
        other = first.setdefault(one.embodiment, one)
        if abs(other.info.fps - one.info.fps) > 1e-6 * one.info.fps:
            shown = f"{other.info.fps:g} rows/s in {other.name}, {one.info.fps:g} in {one.name}"
            remedy = "Give them names of their own in --data.robot-sets, or bring them to one rate."
            raise ConfigError(f"rate of the embodiment {one.embodiment}", shown, "one rate", remedy)
    return {embodiment: one.info.fps for embodiment, one in sorted(first.items())}
