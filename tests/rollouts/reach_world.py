"""A simulator of numpy alone: a dot is to be brought onto another, to the left or the right, which is seen in the picture alone.

Tasks: `reach`; `two_stages`, of which the first is half the way; and those that misbehave, each in its own way, at a seed that says so.
"""

import os
import sys
import time

import numpy as np
from contract import SUCCESS, Simulated

CAMERA = "observation.images.front"
SPEED, NEAR, SIDE = 0.1, 0.06, 64
HALF = "Half the way"
BAD = 3
"""The seed at which a task that misbehaves does so."""


class Simulator(Simulated):
    fps, max_steps = 20.0, 60
    cameras, state, action = (CAMERA,), {"observation.state": 2}, {"action": 2}
    low, high = -np.ones(2, np.float32), np.ones(2, np.float32)
    tasks = {
        name: "bring the red dot onto the green one"
        for name in ("reach", "two_stages", "dies", "hangs", "garbles", "stumbles", "clumsy")
    }
    variants = ("seen", "unseen")
    experts = ("reach", "two_stages", "clumsy")

    def __init__(self, settings: dict) -> None:
        self.size = settings["size"]
        print("a line that a library prints")  # must not reach the run as a message

    def subtasks(self, task: str) -> tuple[str, ...]:
        return (HALF, SUCCESS) if task == "two_stages" else (SUCCESS,)

    def reset(self, task: str, seed: int, variant: str) -> None:
        rng = np.random.default_rng(seed)
        self.task, self.seed = task, seed
        self.at, side = np.zeros(2), rng.choice([-1, 1])
        self.target = np.array([0.8 * side, rng.uniform(-0.03, 0.03)])
        self.ground = (40, 40, 40) if variant == "seen" else (90, 60, 160)

    def states(self) -> dict:
        return {"observation.state": self.at.astype(np.float32)}

    def pictures(self) -> dict:
        image = np.full((self.size, self.size, 3), self.ground, np.uint8)
        for place, colour in ((self.target, (0, 255, 0)), (self.at, (255, 0, 0))):
            column, row = ((place + 1) / 2 * (self.size - 1)).round().astype(int)
            image[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = colour
        return {CAMERA: image}

    def step(self, action: np.ndarray) -> tuple[bool, ...]:
        if self.seed == BAD:
            self._misbehave()
        self.at = np.clip(self.at + SPEED * action, -1, 1)
        far = float(np.linalg.norm(self.at - self.target))
        return (far < 0.4, far < NEAR)[-len(self.subtasks(self.task)) :]

    def _misbehave(self) -> None:
        if self.task == "dies":
            os.abort()
        if self.task == "hangs":
            time.sleep(600)
        if self.task == "garbles":
            for number in map(int, os.listdir("/proc/self/fd")):
                place = f"/proc/self/fd/{number}"
                if number > 2 and os.path.exists(place) and os.readlink(place).startswith("pipe:"):
                    os.write(number, b"no message" * 10)
        if self.task == "stumbles" and not os.path.exists(os.environ["STUMBLED"]):
            open(os.environ["STUMBLED"], "w").close()
            sys.exit(3)

    def expert(self) -> np.ndarray:
        if self.task == "clumsy":
            return self.idle()
        return (self.target - self.at) / SPEED
