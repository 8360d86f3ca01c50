"""One simulator's process and one policy: rollouts, one after another, each tried twice."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from jala_ray.rollouts.acting import AskedPolicy, Execution, Observe, blinded
from jala_ray.rollouts.process import Simulating, SimulatorFailed, SimulatorProcess, SimulatorStart
from jala_ray.serving.contract import Observation
from jala_ray.types import ConfigError

Arm = Literal["policy", "blind", "expert", "idle", "random"]
ASKING: tuple[Arm, ...] = ("policy", "blind")
"""Arms for which the policy is asked; the others act within the simulator."""
DRIVEN_STEPS = 100
"""At a time."""
ATTEMPTS = 2
UNSAFE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class RolloutAsked:
    """One rollout that is asked for."""

    arm: Arm
    task: str
    variant: str
    number: int
    """From 1."""
    seed: int
    """Of the simulator's start: the same for all arms and variants, so that they are compared in pairs."""

    @property
    def key(self) -> str:
        """A name of files."""
        return UNSAFE.sub("-", f"{self.arm}_{self.task}_{self.variant}_{self.number:04d}")


@dataclass
class RolloutOutcome:
    """What came of it."""

    trial: RolloutAsked
    completed: list[bool] = field(default_factory=list)
    """Subtasks; the last one is the success."""
    steps: int = 0
    seconds: float = 0.0
    asked: int = 0
    """Times that the policy was asked."""
    ask_s: float = 0.0
    """Seconds of these, all together."""
    actions: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """(steps, A) as they were executed: with the seed they are the rollout."""
    error: str = ""
    """Why there is no outcome."""

    @property
    def line(self) -> dict[str, Any]:
        facts = asdict(self.trial)
        if self.error:
            return facts | {"error": self.error}
        told = {"completed": self.completed, "success": self.completed[-1], "steps": self.steps, "asked": self.asked}
        return facts | told | {"seconds": round(self.seconds, 4), "ask_s": round(self.ask_s, 4)}


class Driver(Simulating):
    """Raises what the policy raises; a simulator that fails twice is an outcome with an `error`."""

    def __init__(
        self, start: SimulatorStart, hello: Mapping[str, Any], policy: AskedPolicy | None, how: Execution
    ) -> None:
        super().__init__(start)
        self.hello, self.policy, self.how = hello, policy, how

    def run(self, trial: RolloutAsked) -> RolloutOutcome:
        for attempt in range(ATTEMPTS):
            try:
                return self._run(self.process(), trial)
            except SimulatorFailed as error:
                self.close()
                if self.stopped:
                    raise
                if attempt == ATTEMPTS - 1:
                    return RolloutOutcome(trial, error=f"{error} ({ATTEMPTS} attempts)")
        raise AssertionError

    def _run(self, process: SimulatorProcess, trial: RolloutAsked) -> RolloutOutcome:
        begun, outcome = time.perf_counter(), RolloutOutcome(trial)
        process.reset(trial.task, trial.seed, trial.variant)
        executed = self._asked(process, outcome) if trial.arm in ASKING else self._driven(process, outcome)
        outcome.actions = np.concatenate(executed) if executed else outcome.actions
        outcome.seconds = time.perf_counter() - begun
        return outcome

    def _driven(self, process: SimulatorProcess, outcome: RolloutOutcome) -> list[np.ndarray]:
        executed: list[np.ndarray] = []
        while True:
            answer = process.step(drive=outcome.trial.arm, steps=DRIVEN_STEPS)
            executed.append(answer["executed"])
            if _noted(outcome, answer):
                return executed

    def _asked(self, process: SimulatorProcess, outcome: RolloutOutcome) -> list[np.ndarray]:
        assert self.policy is not None
        executed: list[np.ndarray] = []
        observe = self._observer(process, outcome.trial)
        with ExitStack() as open_:
            act = open_.enter_context(self.policy.asking())

            def timed(observation: Observation) -> np.ndarray:
                begun = time.perf_counter()
                chunk = self._fitting(act(observation))
                outcome.asked, outcome.ask_s = outcome.asked + 1, outcome.ask_s + time.perf_counter() - begun
                return chunk

            following = open_.enter_context(self.how.acting(timed))
            while True:
                answer = process.step(actions=following(observe))
                executed.append(answer["executed"])
                if _noted(outcome, answer):
                    return executed

    def _observer(self, process: SimulatorProcess, trial: RolloutAsked) -> Observe:
        instruction = self.hello["tasks"][trial.task]["instruction"]

        def observe() -> Observation:
            seen = process.observe()
            found = Observation(seen["pictures"], seen["state"], instruction)
            return blinded(found) if trial.arm == "blind" else found

        return observe

    def _fitting(self, actions: np.ndarray) -> np.ndarray:
        wanted = len(self.hello["low"])
        if actions.shape[1] != wanted:
            raise ConfigError("policy's actions", f"{actions.shape[1]} columns", f"{wanted}, as the simulator acts")
        return actions


def _noted(outcome: RolloutOutcome, answer: Mapping[str, Any]) -> bool:
    """Whether the rollout is done."""
    outcome.completed, outcome.steps = [bool(one) for one in answer["completed"]], int(answer["steps"])
    return bool(answer["done"])
