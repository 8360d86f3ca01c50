"""A robot's loop that executes one chunk of actions while the next is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from jala_ray.types import ConfigError

Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Chunk:
    """Actions of the steps `first`, `first` + 1, ...: a chunk's first action is for the step whose observation it was computed from."""

    first: int
    actions: np.ndarray
    """(H, A)"""

    def at(self, step: int) -> np.ndarray | None:
        place = step - self.first
        return self.actions[place] if 0 <= place < len(self.actions) else None


class Overlap(Generic[Seen]):
    """Asks a slow policy in a thread of its own, once in `execute` steps.

    ```python
    loop = Overlap(client.act, execute=8, ahead=6)
    while running:
        robot.execute(loop.step(robot.observe))     # one call per control step
    ```
    The policy is asked with the observation of step t, `ahead` steps before its chunk takes over: at step t + `ahead` its action number
    `ahead` follows, so that every action stands at the step it was meant for. A policy that answers within `ahead` steps never keeps the
    robot waiting after the first chunk. One that is later is covered by what is left of the old chunk; then the robot waits.
    """

    def __init__(self, act: Callable[[Seen], np.ndarray], execute: int, ahead: int, patient: bool = False) -> None:
        """`patient`: a late chunk is waited for, whatever is left of the old one, so that actions depend on no clock: for simulators.

        Raises `ConfigError` unless 1 <= ahead <= execute.
        """
        if not 1 <= ahead <= execute:
            raise ConfigError("ahead", ahead, f"1 to {execute}, the steps that are executed of a chunk")
        self.act, self.execute, self.ahead, self.patient = act, execute, ahead, patient
        self.waited = self.late = 0
        """Steps at which the robot waited for the policy, the first one left out; and those that an old chunk covered."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="overlap")
        self._chunk: Chunk | None = None
        self._next: tuple[int, Future[np.ndarray]] | None = None
        self._step = self._ask = 0

    def step(self, observe: Callable[[], Seen]) -> np.ndarray:
        """(A,) the action of this step. `observe` is called at those steps alone at which the policy is asked. Raises what it raised."""
        step, self._step = self._step, self._step + 1
        self._asked(step, observe)
        action = self._action(step)
        self._asked(step, observe)  # where a chunk has just taken over at a step of a question
        return action

    def _asked(self, step: int, observe: Callable[[], Seen]) -> None:
        if self._next is None and step >= self._ask:
            self._ask, self._next = step + self.execute, (step, self._thread.submit(self.act, observe()))

    def _action(self, step: int) -> np.ndarray:
        action = None if self._chunk is None else self._chunk.at(step)
        if self._next is not None and (action is None or step >= self._next[0] + self.ahead):
            if action is None or self.patient or self._next[1].done():
                return self._taken_over(step)
            self.late += 1
        assert action is not None, "a chunk is longer than the steps between two questions"
        return action

    def _taken_over(self, step: int) -> np.ndarray:
        """The next chunk's action for this step, waited for where there is nothing else."""
        assert self._next is not None
        (first, future), self._next = self._next, None
        self.waited += self._chunk is not None and not future.done()
        self._chunk = Chunk(first, self._checked(future.result()))
        action = self._chunk.at(step)
        assert action is not None
        return action

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        if actions.ndim != 2 or len(actions) < self.ahead + self.execute:
            expected = f"(H, A) with H at least {self.ahead + self.execute}, ahead + execute"
            raise ConfigError("chunk", actions.shape, expected, "Execute fewer steps of a chunk.")
        return actions

    def close(self) -> None:
        """Waits for the policy's last answer."""
        self._thread.shutdown()
