"""Demonstrations of a simulator's scripted experts, as a LeRobot data set: successes alone, the same for any number of workers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from jala_ray import progress
from jala_ray.data.robots.write import RobotLayout, RobotWriter
from jala_ray.registry import suggest
from jala_ray.rollouts.crew import in_threads
from jala_ray.rollouts.process import Simulating, SimulatorFailed, SimulatorProcess, SimulatorStart
from jala_ray.types import ConfigError

STEPS = 50
"""Of pictures that a simulator sends at a time."""
ATTEMPTS = 3
"""For an episode that is asked for, on average; an expert that needs more is none."""


@dataclass(frozen=True)
class Demonstrations:
    """What is asked for."""

    out: str
    tasks: tuple[str, ...]
    """(): all that have an expert."""
    episodes: int
    """Of each task."""
    seed: int
    noise: float = 0.0
    """Standard deviation of what is added to executed actions, as a share of half their range."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or not 0 <= self.noise <= 1:
            raise ConfigError("episodes, noise", (self.episodes, self.noise), "episodes >= 1, and noise of 0 to 1")


@dataclass(frozen=True)
class Demonstrated:
    """One attempt."""

    task: str
    seed: int
    success: bool
    signals: Mapping[str, np.ndarray]
    """(T, D): states before each action, and `action`, the expert's own."""
    pictures: Mapping[str, np.ndarray]


class Demonstrator(Simulating):
    """A simulator whose expert acts."""

    def __init__(self, start: SimulatorStart, noise: float, variant: str) -> None:
        super().__init__(start)
        self.noise, self.variant = noise, variant

    def run(self, attempt: tuple[str, int]) -> Demonstrated:
        """Raises `SimulatorFailed` where it fails twice."""
        try:
            return self._run(*attempt)
        except SimulatorFailed:
            self.close()
            if self.stopped:
                raise
            return self._run(*attempt)

    def _run(self, task: str, seed: int) -> Demonstrated:
        process = self.process()
        process.reset(task, seed, self.variant)
        parts: list[dict[str, Any]] = []
        while not parts or not parts[-1]["done"]:
            parts.append(process.step(drive="expert", steps=STEPS, noise=self.noise, see=1))
        signals = _joined([part["states"] for part in parts]) | {
            "action": np.concatenate([p["actions"] for p in parts])
        }
        return Demonstrated(
            task, seed, bool(parts[-1]["completed"][-1]), signals, _joined([p["pictures"] for p in parts])
        )


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def record(start: SimulatorStart, asked: Demonstrations, workers: int) -> dict[str, Any]:
    """Write the data set; returns counts by task, and seconds. Raises `ConfigError` for a task without an expert, or whose fails often."""
    begun = time.perf_counter()
    with SimulatorProcess(start) as process:
        hello = process.hello()
    asked = replace(asked, tasks=asked.tasks or tuple(hello["experts"]))
    for task in asked.tasks:
        if task not in hello["experts"]:
            expected = f"one of {len(hello['experts'])} tasks with a scripted expert"
            raise ConfigError("tasks", task, expected, suggest(task, hello["experts"]))
    told = {task: {"episodes": 0, "attempts": 0, "frames": 0, "seeds": list[int]()} for task in asked.tasks}
    layout = RobotLayout(
        hello["fps"],
        {**hello["state"], "action": len(hello["low"])},
        {camera: (start.size, start.size) for camera in hello["cameras"]},
        "simulated",
    )
    meter = progress.Meter(asked.episodes * len(asked.tasks), "episodes")
    with RobotWriter(asked.out, layout) as writer, progress.told(meter) as tell:
        while attempts := _attempts(asked, told):
            for found in _in_order(start, asked.noise, hello["variants"][0], attempts, workers):
                own = told[found.task]
                own["attempts"] += 1
                if found.success:
                    writer.add(found.signals, found.pictures, hello["tasks"][found.task]["instruction"])
                    own["episodes"] += 1
                    own["frames"] += len(found.signals["action"])
                    own["seeds"].append(found.seed)
                    meter.advance()
                    tell()
        facts = {"simulator": start.file.rpartition("/")[2], "versions": hello["versions"], "tasks": told}
        writer.close(**facts, **{key: value for key, value in asdict(asked).items() if key not in ("out", "tasks")})
    return {"tasks": told, "seconds": time.perf_counter() - begun}


def _attempts(asked: Demonstrations, told: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, int]]:
    """(task, seed) of what is to be tried next: as many as are missing."""
    found = []
    for task, own in told.items():
        missing = asked.episodes - own["episodes"]
        if missing and own["attempts"] >= ATTEMPTS * asked.episodes:
            got = f"{own['episodes']} successes of {own['attempts']} attempts"
            raise ConfigError(f"expert of {task}", got, "more", "Leave this task out, or take less --noise.")
        first = asked.seed + own["attempts"]
        found += [(task, seed) for seed in range(first, first + missing)]
    return found


def _in_order(
    start: SimulatorStart, noise: float, variant: str, attempts: Sequence[tuple[str, int]], workers: int
) -> Iterator[Demonstrated]:
    """As asked, whatever is done first."""
    waiting: dict[tuple[str, int], Demonstrated] = {}
    following = iter(attempts)
    wanted = next(following)
    for found in in_threads(lambda: Demonstrator(start, noise, variant), attempts, workers):
        waiting[found.task, found.seed] = found
        while wanted in waiting:
            yield waiting.pop(wanted)
            wanted = next(following, ("", -1))
