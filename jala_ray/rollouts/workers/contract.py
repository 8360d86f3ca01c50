"""What a simulator of `main.py` has. Yours is a file with a class `Simulator` that inherits this one, and imports what it likes."""

from abc import ABC, abstractmethod

import numpy as np

SUCCESS = "Success"


class Simulated(ABC):
    """One robot and its tasks. `settings` has `size` (px of the square pictures) and `cameras` (names, [] for the simulator's own)."""

    fps: float
    """Control steps per second."""
    max_steps: int
    """After which a rollout has failed."""
    cameras: tuple[str, ...]
    """Names of the pictures: `observation.images.front`."""
    state: dict
    """{name: width}: proprioception alone. Where the target lies, a policy that sees no pictures must not be told."""
    action: dict
    """{name: width} of the parts of an action, in their order."""
    low: np.ndarray
    high: np.ndarray
    """(A,) Bounds of actions; those outside are clipped."""
    tasks: dict
    """{name: instruction}"""
    variants: tuple[str, ...] = ("seen",)
    """The first is that of demonstrations."""
    experts: tuple[str, ...] = ()
    """Tasks that have a scripted expert."""

    def subtasks(self, task: str) -> tuple[str, ...]:
        """What is completed on the way; the last one is the task's own success, which completes all of them."""
        return (SUCCESS,)

    @abstractmethod
    def reset(self, task: str, seed: int, variant: str) -> None:
        """Begin; the same three give the same rollout for the same actions."""

    @abstractmethod
    def states(self) -> dict:
        """{name: (D,) float32}"""

    @abstractmethod
    def pictures(self) -> dict:
        """{camera: (H, W, 3) uint8}"""

    @abstractmethod
    def step(self, action: np.ndarray) -> tuple[bool, ...]:
        """Act (A,); which subtasks are completed at this moment."""

    def expert(self) -> np.ndarray:
        """(A,) The next action of a scripted expert."""
        raise NotImplementedError

    def idle(self) -> np.ndarray:
        """(A,) An action that holds still."""
        return np.zeros(len(self.low), np.float32)

    def versions(self) -> dict:
        """{package: version} of what decides the physics."""
        return {}
