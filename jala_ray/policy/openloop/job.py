"""The open-loop comparison of a policy with recorded episodes, part by part: in a loop, or on Ray by `data.pipeline.work_through`.

```
OUT/
  claim.json           what is compared, and how; another comparison in the same folder is refused
  parts/00000.records  the records of some episodes (`records.py`); a rerun makes only what is missing
  openloop.json  table.md  report.html
```
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from jala_ray import storage
from jala_ray.config import DataConfig, RunConfig
from jala_ray.data.robots.sets import RobotSet, RobotSets, open_sets
from jala_ray.data.robots.split import held_out
from jala_ray.data.robots.statistics import robot_statistics
from jala_ray.data.samples.assets import STATISTICS
from jala_ray.data.samples.signals import SignalStatistics, Statistics
from jala_ray.parsing import from_dict
from jala_ray.policy.openloop import records
from jala_ray.policy.openloop.asking import OpenLoop, Place
from jala_ray.policy.openloop.episodes import EpisodeReader, PolicyShape
from jala_ray.policy.openloop.records import EpisodeRecord
from jala_ray.serving.loading import FUNCTION, load
from jala_ray.storage import StorageOptions
from jala_ray.storage.claims import Claim, missing_parts
from jala_ray.types import ConfigError

PART_EPISODES = 4
Split = Literal["val", "train", "all"]


class OpenLoopPart(NamedTuple):
    """Some episodes that one task compares, as places in the job's list."""

    number: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class OpenLoopJob:
    """What every task knows; small, hashable and picklable. Calling it with a part makes the part unless it is there."""

    out: str
    policy: str
    """Address of a checkpoint, or module:function."""
    sets: tuple[tuple[str, str], ...]
    """(address, embodiment), all of one embodiment."""
    episodes: tuple[tuple[str, int], ...] = ()
    """(set's name, LeRobot's number)."""
    embodiment: str = ""
    """As the policy is told."""
    every: int | None = None
    """Actions from a moment to the next; None: half of an answer's."""
    held_out: float = 0.05
    weights: Literal["average", "last"] | None = None
    seed: int = 0
    digest: str = ""
    """Of the sets."""
    gpu: bool = True
    options: StorageOptions = field(default_factory=StorageOptions)

    def address(self, number: int) -> str:
        return storage.join(self.out, "parts", _file(number))

    def __call__(self, part: OpenLoopPart) -> dict[str, Any]:
        address = self.address(part.number)
        if not storage.exists(address, self.options):
            loop, places = _open(self)
            found = [loop.record(places[at], other_of(places, at)) for at in part.places]
            storage.write_bytes(address, records.to_bytes(found), options=self.options)
        return {"part": part.number, "episodes": len(part.places)}


def _file(number: int) -> str:
    return f"{number:05d}.records"


def other_of(places: Sequence[Place], at: int) -> Place | None:
    """The next episode of the same set, in a ring; None for one alone."""
    mine = [place for place in places if place.of is places[at].of]
    return mine[(mine.index(places[at]) + 1) % len(mine)] if len(mine) > 1 else None


@lru_cache(maxsize=1)
def _open(job: OpenLoopJob) -> tuple[OpenLoop, list[Place]]:
    sets, settings = open_sets(job.sets, job.options), dict[str, Any]()
    if not FUNCTION.fullmatch(job.policy):
        device = torch.device("cuda" if job.gpu and torch.cuda.is_available() else "cpu")
        settings = {"embodiment": job.embodiment, "options": job.options, "device": device}
        settings |= {"weights": job.weights, "seed": job.seed}
    policy = load(job.policy, **settings)
    asked = PolicyShape.of(policy)
    every = job.every or max(1, asked.horizon // 2)
    if every > asked.horizon:
        raise ConfigError("every", every, f"at most the {asked.horizon} actions of an answer")
    known = statistics_of(job, sets, tuple(asked.state))
    mean = {name: np.array(known[name].mean, np.float32) for name in asked.state}
    return OpenLoop(policy, EpisodeReader(asked, every, job.options), mean), _places(job, sets)


def release() -> None:
    """Forget the policy that this process's last part has loaded: it holds memory, of a GPU too."""
    _open.cache_clear()


def _places(job: OpenLoopJob, sets: RobotSets) -> list[Place]:
    by_name = {of.name: of for of in sets.sets}
    found = []
    for name, number in job.episodes:
        of = by_name[name]
        found.append(Place(of, int(np.flatnonzero(of.episodes.number == number)[0])))
    return found


def statistics_of(job: OpenLoopJob, sets: RobotSets, names: Sequence[str]) -> Mapping[str, SignalStatistics]:
    """Of signals over training rows, by name: those that the checkpoint learned in, else of the sets' own training episodes."""
    robot, found = sets.sets[0].embodiment, dict[str, SignalStatistics]()
    place = storage.join(job.policy, STATISTICS)
    if not FUNCTION.fullmatch(job.policy) and storage.exists(place, job.options):
        found = dict(Statistics.from_json(storage.read_bytes(place, job.options).decode()).signals)
    if missing := [name for name in names if name not in found and f"{robot}:{name}" not in found]:
        data = DataConfig(robot_sets=job.sets, held_out_episodes=job.held_out)
        found |= robot_statistics(sets, data, missing, "").signals
    return {name: found.get(f"{robot}:{name}") or found[name] for name in names}


@dataclass(frozen=True)
class Comparison:
    """A comparison that has claimed its folder."""

    job: OpenLoopJob
    parts: list[OpenLoopPart]

    def missing(self) -> list[OpenLoopPart]:
        folder = storage.join(self.job.out, "parts")
        return missing_parts(self.parts, lambda part: _file(part.number), folder, self.job.options)

    def finish(self) -> list[EpisodeRecord]:
        """All records, when all parts are there."""
        job = self.job
        return [
            record
            for part in self.parts
            for record in records.from_bytes(storage.read_bytes(job.address(part.number), job.options))
        ]

    def statistics(self, names: Sequence[str]) -> Mapping[str, SignalStatistics]:
        return statistics_of(self.job, open_sets(self.job.sets, self.job.options), names)


def begin(
    job: OpenLoopJob, split: Split = "val", most: int | None = None, numbers: Sequence[int] = (), embodiment: str = ""
) -> Comparison:
    """Choose the episodes and claim the folder `job.out`. `numbers`: LeRobot's, of every set; none: those of the split, at most `most`.

    Raises `ConfigError` where it holds another comparison, and for sets of several robots among which `embodiment` does not choose.
    """
    if job.every is not None and job.every < 1:
        raise ConfigError("every", job.every, "1 or more")
    if most is not None and most < 1:
        raise ConfigError("episodes", most, "1 or more")
    job = dataclasses.replace(job, sets=_of_one_robot(job.sets, embodiment))
    sets = open_sets(job.sets, job.options)
    chosen = [(of.name, number) for of in sets.sets for number in _chosen(of, split, numbers, job.held_out)]
    if most is not None and len(chosen) > most:
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, most).round().astype(int)]
    job = dataclasses.replace(job, episodes=tuple(chosen), digest=sets.digest)
    storage.probe(job.out, job.options)
    claim = {name: value for name, value in _plain(job).items() if name not in ("out", "gpu", "options")}
    Claim(job.out, "claim.json", claim, "comparison", "Choose another folder or delete it.", job.options).take()
    return Comparison(job, _parts(len(chosen)))


def _plain(job: OpenLoopJob) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(job)))


def _of_one_robot(sets: Sequence[tuple[str, str]], embodiment: str) -> tuple[tuple[str, str], ...]:
    robots = sorted({robot for _, robot in sets})
    if not sets:
        remedy = "Pass --robot-sets PATH EMBODIMENT: the checkpoint was not trained on robot sets."
        raise ConfigError("robot-sets", (), "one or more LeRobot folders", remedy)
    chosen = tuple((address, robot) for address, robot in sets if embodiment in ("", robot))
    if len({robot for _, robot in chosen}) != 1:
        raise ConfigError("embodiment", embodiment, f"one of {', '.join(robots)}")
    return chosen


def _chosen(of: RobotSet, split: Split, numbers: Sequence[int], share: float) -> list[int]:
    there = of.episodes.number
    if numbers:
        if lacking := sorted(set(numbers) - set(there.tolist())):
            raise ConfigError("numbers", lacking, f"episodes of {of.base}, {there[0]} to {there[-1]}")
        return list(dict.fromkeys(numbers))
    mine = held_out(of, share)
    if split != "all":
        there = there[mine == (split == "val")]
    return there.tolist()


def reopen(out: str, options: StorageOptions) -> Comparison:
    """The comparison that has claimed a folder."""
    claim = json.loads(storage.read_bytes(storage.join(out, "claim.json"), options))
    for name in ("sets", "episodes"):
        claim[name] = tuple(map(tuple, claim[name]))
    job = OpenLoopJob(out=out, options=options, **claim)
    return Comparison(job, _parts(len(job.episodes)))


def _parts(count: int) -> list[OpenLoopPart]:
    begins = range(0, count, PART_EPISODES)
    return [OpenLoopPart(i, tuple(range(at, min(at + PART_EPISODES, count)))) for i, at in enumerate(begins)]


def trained_on(checkpoint: str, options: StorageOptions) -> DataConfig:
    """What a checkpoint learned from."""
    return from_dict(RunConfig, json.loads(storage.read_bytes(storage.join(checkpoint, "config.json"), options))).data
