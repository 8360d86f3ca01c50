"""`jala rollouts setup`, `run` and `record`: simulators, in environments of their own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError


@dataclass(frozen=True)
class SetupAction:
    """Make a simulator's Python environment, outside of this one, and try it: metaworld, libero, pusht."""

    simulator: Positional[Annotated[str, arg(metavar="SIMULATOR")]]
    """metaworld, libero (needs Python 3.12) or pusht."""
    python: str | None = None
    """The interpreter of the new environment; None: the one that runs this."""

    def run(self) -> int:
        from jala_ray.rollouts.environments import make

        found = make(self.simulator, self.python, lambda line: print(line, flush=True))
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        print(f"{found['folder']}: {found['tasks']} tasks; {versions}")
        print(
            ", ".join(f"{name.removesuffix('_s').replace('_', ' ')} {s:.3g} s" for name, s in found["seconds"].items())
        )
        return 0


@dataclass(frozen=True)
class Simulation:
    """Which simulator, and what it shows."""

    simulator: str = "metaworld"
    """metaworld, libero, pusht, or a .py file with a class `Simulator`."""
    python: str | None = None
    """The interpreter of a simulator of yours; None: this one."""
    tasks: tuple[str, ...] = ()
    """Names of its tasks; (): all."""
    size: int = 128
    """px of pictures."""
    cameras: tuple[str, ...] = ()
    """Of those that the simulator has, by the data set's names; (): its own choice."""
    answer_s: float = 120.0
    """Seconds after which a simulator that does not answer has failed."""
    workers: int = 2
    """Simulators at once."""


def called(policy: str) -> str:
    """A run's name, with the step where a checkpoint is meant; a server's host and port; a function as it is."""
    *_, run, last = ("", *policy.rstrip("/").replace("/checkpoints/", "/").split("/"))
    return f"{run} {last}" if run and last.startswith("step-") else last


@dataclass(frozen=True)
class RunAction:
    """Judge a policy by rollouts in a simulator, beside the same policy with black pictures. The same command again continues."""

    policy: Positional[Annotated[str | None, arg(metavar="POLICY")]] = None
    """ws://host:port of a server, a checkpoint's folder, or module:function; none for arms that ask none."""
    out: str = "runs/rollouts"
    """Folder of lines, videos, scores and page; local."""
    name: str | None = None
    """The policy's name on the page; None: the end of its address."""
    simulation: Annotated[Simulation, arg(name="")] = field(default_factory=Simulation)
    rollouts: int = 10
    """Of each task, variant and arm."""
    variants: tuple[str, ...] = ()
    """seen, unseen (another table) where the simulator has them; (): the first."""
    arms: tuple[Literal["policy", "blind", "expert", "idle", "random"], ...] = ()
    """What acts; (): policy and blind. expert, idle and random need no policy."""
    seed: int = 0
    """Of the first rollout; the next ones count on. Demonstrations begin at 10000."""
    execute: int = 8
    """Steps of a chunk before the policy is asked again."""
    max_steps: int | None = None
    """After which a rollout has failed, where that is earlier than the simulator's own; None: that. For a look whether all is connected."""
    ahead: int = 0
    """Steps by which a question goes ahead of its chunk, as a robot's that moves while the policy computes; 0: the world waits."""
    convention: str | None = None
    """Keys of a served policy, as those of `jala serve`; None: libero for libero, else lerobot."""
    token_file: str | None = None
    """File of a served policy's token."""
    embodiment: str = ""
    """Whose statistics a checkpoint's policy takes."""
    videos: int = 2
    """Successes and failures of each task, variant and filmed arm."""
    film: tuple[str, ...] = ("policy", "expert")
    """Arms that are filmed."""
    ray: bool = False
    """Simulators as actors of the Ray cluster, one CPU each, and not as processes of this machine; they load the policy each."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)

    def run(self) -> int:
        job = self._job()
        from jala_ray.reports.rollouts.page import percent
        from jala_ray.reports.rollouts.simulated import publish, simulated_findings
        from jala_ray.rollouts.films import filmed
        from jala_ray.rollouts.job import opened, perform
        from jala_ray.rollouts.summary import summary, write_forms

        session = opened(job)
        perform(session, self.simulation.workers, self.ray, self.storage)
        films = filmed(session, self.film, self.videos)
        write_forms(session)
        found = summary(session, films)
        print(publish(found, str(session.folder)))
        for arm in session.job.arms:
            for task, variants in found["success"][arm].items():
                for variant, own in variants.items():
                    print(f"{arm}: {task}, {variant}: {own['count']} of {own['of']}, {percent(own)}")
        for finding in simulated_findings(found):
            print(finding.line)
        return 1 if found["failed"] else 0

    def _job(self):
        from jala_ray.rollouts.acting import Execution
        from jala_ray.rollouts.job import PolicySource, RolloutJob

        _local(self.out)
        simulation, how = self.simulation, Execution(self.execute, self.ahead)
        source = (
            None
            if self.policy is None
            else PolicySource(self.policy, self._keys(), self._token(), self.embodiment, self.storage)
        )
        arms = self.arms or ("policy", "blind")
        name = self.name or (called(self.policy) if self.policy else "baselines")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError("max-steps", self.max_steps, "1 or more")
        start = replace(_start(simulation), max_steps=self.max_steps)
        many = {"rollouts": self.rollouts, "variants": self.variants, "arms": arms, "seed": self.seed, "how": how}
        return RolloutJob(self.out, simulation.simulator, start, name, source, simulation.tasks, **many)

    def _keys(self) -> str:
        from jala_ray.rollouts.environments import SIMULATORS
        from jala_ray.serving.conventions import convention

        known = SIMULATORS.get(self.simulation.simulator)
        keys = self.convention or (known.convention if known is not None else "lerobot")
        convention(keys)
        return keys

    def _token(self) -> str | None:
        from jala_ray.serving.listening import read_token

        return None if self.token_file is None else read_token(self.token_file)


@dataclass(frozen=True)
class RecordAction:
    """Write demonstrations of scripted experts as a LeRobot v3.0 data set, successes alone."""

    out: str
    """Folder of the data set, which must not be there; local."""
    simulation: Annotated[Simulation, arg(name="")] = field(default_factory=Simulation)
    episodes: int = 50
    """Of each task."""
    seed: int = 10_000
    """Of the first attempt."""
    noise: float = 0.0
    """Standard deviation of what is added to executed actions, as a share of half their range; recorded are the expert's own, so that a
    policy sees how to come back."""

    def run(self) -> int:
        from jala_ray.rollouts.demonstrations import Demonstrations, record

        _local(self.out)
        asked = Demonstrations(self.out, self.simulation.tasks, self.episodes, self.seed, self.noise)
        told = record(_start(self.simulation), asked, self.simulation.workers)
        for task, facts in told["tasks"].items():
            print(f"{task}: {facts['episodes']} episodes of {facts['attempts']} attempts, {facts['frames']} frames")
        print(f"{self.out}: {told['seconds']:.1f} s")
        return 0


def _start(simulation: Simulation):
    from jala_ray.rollouts.environments import start_of

    if simulation.size < 16 or simulation.size % 2:
        raise ConfigError("size", simulation.size, "an even number of px, at least 16")
    if simulation.workers < 1 or simulation.answer_s <= 0:
        raise ConfigError("workers, answer-s", (simulation.workers, simulation.answer_s), "positive numbers")
    start = start_of(simulation.simulator, simulation.python)
    return replace(start, size=simulation.size, cameras=simulation.cameras, answer_s=simulation.answer_s)


def _local(place: str) -> None:
    from jala_ray import storage

    if storage.is_s3(place):
        raise ConfigError("out", place, "a local folder", "Copy it when it is done.")
