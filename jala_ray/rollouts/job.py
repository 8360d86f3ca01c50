"""Rollouts of a policy in a folder of their own, which a killed job goes on with.

claim.json       the settings; other ones in the same folder are refused
rollouts.jsonl   a line for every rollout as it ends: seed, subtasks completed, steps, or the error
actions/         what was executed, (steps, A) float32: with the seed it is the rollout, and videos are made from it
videos/          successes and failures, H.264
forms/           the same lines as forms of `jala rollouts score`, one an arm
scores.json      all figures; table.md, report.html: the same, to be read
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jala_ray import progress
from jala_ray.registry import suggest
from jala_ray.rollouts.acting import AskedPolicy, Execution, HeldPolicy, ServedPolicy, suited
from jala_ray.rollouts.crew import in_threads, through_ray
from jala_ray.rollouts.driving import ASKING, Arm, Driver, RolloutAsked, RolloutOutcome
from jala_ray.rollouts.process import SimulatorProcess, SimulatorStart
from jala_ray.serving.contract import proven
from jala_ray.serving.conventions import convention
from jala_ray.serving.loading import load
from jala_ray.storage import StorageOptions
from jala_ray.storage.claims import Claim
from jala_ray.types import ConfigError

CLAIM, LINES, ACTIONS = "claim.json", "rollouts.jsonl", "actions"
MAY_GROW = ("tasks", "variants", "arms", "rollouts")
"""Settings that say which rollouts, and nothing of what comes of one."""
NETWORK = "ws://", "wss://"


@dataclass(frozen=True)
class PolicySource:
    """Where a policy is."""

    address: str
    """ws://host:port, a checkpoint, or module:function."""
    convention: str
    """Keys of a served one."""
    token: str | None = field(default=None, repr=False)
    embodiment: str = ""
    options: StorageOptions | None = None

    @property
    def served(self) -> bool:
        return self.address.startswith(NETWORK)

    @property
    def held(self) -> str | None:
        """What is opened in this process; None of a server, whose port says nothing of its policy."""
        return None if self.served else self.address.rstrip("/")

    def open(self) -> AskedPolicy:
        """Raises `ConfigError` where it is not to be had, or does not un-normalise what it has learned from."""
        if self.served:
            return ServedPolicy(self.address, convention(self.convention), self.token)
        policy = load(self.address, embodiment=self.embodiment, options=self.options or StorageOptions())
        proven(policy)
        return HeldPolicy(policy)


@dataclass(frozen=True)
class RolloutJob:
    """What is asked for."""

    out: str
    """A local folder: lines are appended to one of its files."""
    simulator: str
    start: SimulatorStart
    name: str
    """Of the policy, as pages call it."""
    source: PolicySource | None
    """None: the arms need none."""
    tasks: tuple[str, ...]
    rollouts: int = 10
    """Of each task, variant and arm."""
    variants: tuple[str, ...] = ()
    """(): the first, which demonstrations have."""
    arms: tuple[Arm, ...] = ASKING
    seed: int = 0
    how: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        if self.rollouts < 1:
            raise ConfigError("rollouts", self.rollouts, "1 or more")
        if "policy" in self.arms and "blind" not in self.arms:
            raise ConfigError("arms", self.arms, "blind beside policy", "A policy that sees nothing may succeed too.")
        if self.source is None and (needed := set(self.arms) & set(ASKING)):
            raise ConfigError("policy", None, f"one, for {' and '.join(sorted(needed))}", "Or name other --arms.")


@dataclass(frozen=True)
class Session:
    """A job whose simulator was asked what there is."""

    job: RolloutJob
    hello: Mapping[str, Any]

    @cached_property
    def trials(self) -> list[RolloutAsked]:
        """All that is asked for; those of one scene stand together."""
        job = self.job
        return [
            RolloutAsked(arm, task, variant, number, job.seed + number - 1)
            for task in job.tasks
            for variant in job.variants
            for arm in job.arms
            for number in range(1, job.rollouts + 1)
        ]

    @property
    def folder(self) -> Path:
        return Path(self.job.out)

    def lines(self) -> dict[str, dict[str, Any]]:
        """What has been written, by trial; the last line of one counts."""
        path = self.folder / LINES
        rows = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        found = [json.loads(row) for row in rows if row.endswith(b"\n")]
        return {key_of(row): row for row in found}

    def missing(self) -> list[RolloutAsked]:
        """Those that have no outcome, and those that failed by their simulator."""
        lines = self.lines()
        return [trial for trial in self.trials if "success" not in lines.get(trial.key, {})]

    def facts(self) -> dict[str, Any]:
        """What the claim holds: all that decides an outcome, and what is asked for."""
        job = self.job
        return {
            "simulator": job.simulator,
            "versions": self.hello["versions"],
            "policy": job.name,
            "address": None if job.source is None else job.source.held,
            "tasks": list(job.tasks),
            "variants": list(job.variants),
            "arms": list(job.arms),
            "rollouts": job.rollouts,
            "seed": job.seed,
            "size": job.start.size,
            "cameras": list(self.hello["cameras"]),
            "max_steps": job.start.max_steps,
            **asdict(job.how),
        }


def key_of(row: Mapping[str, Any]) -> str:
    return RolloutAsked(row["arm"], row["task"], row["variant"], row["number"], row["seed"]).key


def opened(job: RolloutJob) -> Session:
    """Asks the simulator what there is. Raises `ConfigError` for tasks, variants and arms that it has not, `SimulatorFailed`."""
    with SimulatorProcess(job.start) as process:
        hello = process.hello()
    job = replace(job, variants=job.variants or (hello["variants"][0],), tasks=job.tasks or tuple(hello["tasks"]))
    for field_, asked, there in (
        ("tasks", job.tasks, [*hello["tasks"]]),
        ("variants", job.variants, hello["variants"]),
    ):
        for name in asked:
            if name not in there:
                raise ConfigError(field_, name, f"one of {len(there)} that {job.simulator} has", suggest(name, there))
        if len(set(asked)) < len(asked):
            raise ConfigError(field_, asked, "each once")
    if "expert" in job.arms and (without := [task for task in job.tasks if task not in hello["experts"]]):
        raise ConfigError("arms", "expert", f"tasks with a scripted expert, but {without[0]} has none")
    return Session(job, hello)


def perform(session: Session, workers: int, ray: bool = False, options: StorageOptions | None = None) -> None:
    """Run what is missing. Raises `ConfigError` for a folder of other settings, or one in which another job is at work."""
    job, folder = session.job, session.folder
    (folder / ACTIONS).mkdir(parents=True, exist_ok=True)
    Claim(str(folder), CLAIM, session.facts(), "rollouts", "Take another --out.", free=MAY_GROW).take()
    with _held(folder) as write:
        missing = session.missing()
        if not missing:
            return
        print(f"{len(missing)} of {len(session.trials)} rollouts to do", flush=True)
        source, policy = job.source, None
        if source is not None and not ray:
            policy = suited(source.open(), session.hello)

        def make() -> Driver:
            own = suited(source.open(), session.hello) if ray and source is not None else policy
            return Driver(job.start, session.hello, own, job.how)

        many = (
            through_ray(make, missing, workers, options or StorageOptions())
            if ray
            else in_threads(make, missing, workers)
        )
        meter = progress.Meter(len(missing), "rollouts")
        with progress.told(meter) as tell:
            for outcome in many:
                _kept(folder, outcome)
                write(outcome.line)
                meter.advance(successes=float(bool(outcome.completed) and outcome.completed[-1]))
                tell()


def _kept(folder: Path, outcome: RolloutOutcome) -> None:
    if not outcome.error:
        np.save(action_file(folder, outcome.trial.key), outcome.actions)


def action_file(folder: Path, key: str) -> Path:
    return folder / ACTIONS / f"{key}.npy"


@contextmanager
def _held(folder: Path) -> Iterator[Any]:
    """A function that appends a line, whole or not at all; half a line of a killed job is cut off."""
    with (folder / LINES).open("ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError("out", str(folder), "a folder in which no other job is at work") from None
        file.seek(0)
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)

        def write(line: Mapping[str, Any]) -> None:
            os.write(file.fileno(), json.dumps(line).encode() + b"\n")
            os.fsync(file.fileno())

        yield write


def outcomes(session: Session) -> Sequence[Mapping[str, Any]]:
    """Lines of all that was asked for, in its order; those without an outcome have none, or an `error`."""
    lines = session.lines()
    return [lines[trial.key] for trial in session.trials if trial.key in lines]
