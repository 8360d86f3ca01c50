"""Answers one run's messages with one simulator, in the simulator's own environment, until standard input ends.

`python main.py FILE SETTINGS`: FILE has a class `Simulator`, SETTINGS are JSON. What libraries print goes to standard error.
"""

import importlib.util
import json
import os
import platform
import sys
import traceback
from typing import Any, BinaryIO

import numpy as np
import wire
from contract import Simulated


class Ended(Exception):
    """Standard input has ended: the run is gone."""


class Rollout:
    """A simulator, and what has happened since its last reset; `most`: steps after which it is done, whatever the simulator says."""

    def __init__(self, simulator: Simulated, most: float = float("inf")) -> None:
        self.simulator, self.most = simulator, most
        self.steps, self.completed = 0, np.zeros(0, bool)
        self.rng = np.random.default_rng(0)

    @property
    def done(self) -> bool:
        return bool(self.completed.all()) or self.steps >= min(self.most, self.simulator.max_steps)

    def hello(self) -> dict:
        sim = self.simulator
        tasks = {name: {"instruction": text, "subtasks": sim.subtasks(name)} for name, text in sim.tasks.items()}
        told = {"fps": sim.fps, "max_steps": sim.max_steps, "cameras": sim.cameras}
        told |= {"state": sim.state, "action": sim.action, "low": sim.low, "high": sim.high, "tasks": tasks}
        versions = {"python": platform.python_version(), "numpy": np.__version__, **sim.versions()}
        return told | {"variants": sim.variants, "experts": sim.experts, "versions": versions}

    def reset(self, task: str, seed: int, variant: str) -> dict:
        self.simulator.reset(task, seed, variant)
        self.steps, self.completed = 0, np.zeros(len(self.simulator.subtasks(task)), bool)
        self.rng = np.random.default_rng([seed, 20])
        return self._outcome()

    def observe(self) -> dict:
        return {"pictures": self.simulator.pictures(), "state": self.simulator.states()}

    def step(self, actions: Any = None, drive: str = "", steps: int = 0, noise: float = 0.0, see: int = 0) -> dict:
        """Act: `actions` (n, A), or `steps` of the `drive` expert, idle or random, until the rollout is done.

        `noise`, a share of half an action's range, is added to what is executed; `actions` of the answer are without it. `see`: states and
        pictures before each action whose number divides by it.
        """
        meant, executed, states, pictures = [], [], [], []
        for i in range(len(actions) if actions is not None else steps):
            if self.done:
                break
            if see and self.steps % see == 0:
                states.append(self.simulator.states())
                pictures.append(self.simulator.pictures())
            action = self._clipped(actions[i] if actions is not None else self._driven(drive))
            meant.append(action)
            executed.append(self._clipped(action + self._noise(noise)) if noise else action)
            self._executed(executed[-1])
        width = len(self.simulator.low)
        told = {
            name: np.array(a, np.float32).reshape(-1, width) for name, a in (("actions", meant), ("executed", executed))
        }
        return self._outcome() | told | {"states": _stacked(states), "pictures": _stacked(pictures)}

    def _executed(self, action: np.ndarray) -> None:
        self.completed |= np.array(self.simulator.step(action), bool)
        self.completed |= self.completed[-1]
        self.steps += 1

    def _driven(self, drive: str) -> np.ndarray:
        if drive == "random":
            return self.rng.uniform(self.simulator.low, self.simulator.high)
        return self.simulator.expert() if drive == "expert" else self.simulator.idle()

    def _noise(self, noise: float) -> np.ndarray:
        return noise * self.rng.normal(size=len(self.simulator.low)) * (self.simulator.high - self.simulator.low) / 2

    def _clipped(self, action: np.ndarray) -> np.ndarray:
        return np.clip(np.asarray(action, np.float32), self.simulator.low, self.simulator.high).astype(np.float32)

    def _outcome(self) -> dict:
        return {"completed": self.completed, "steps": self.steps, "done": self.done}


def _stacked(seen: list) -> dict:
    return {name: np.stack([one[name] for one in seen]) for name in (seen[0] if seen else {})}


def loaded(file: str, settings: dict) -> Simulated:
    spec = importlib.util.spec_from_file_location("jala_simulator", file)
    assert spec is not None and spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Simulator(settings)


def answer(rollout: Rollout, message: dict) -> dict:
    """What a message asks for, or `error` with its reason."""
    asked = message.pop("ask", None)
    try:
        if asked not in ("hello", "reset", "observe", "step"):
            raise ValueError(f"{asked!r} is no question")
        return getattr(rollout, asked)(**message)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def taken(source: BinaryIO, count: int) -> bytes:
    data = source.read(count)
    if len(data) < count:
        raise Ended
    return data


def main(file: str, settings: str) -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the messages' pipe is theirs alone
    sys.stdout = sys.stderr
    asked = json.loads(settings)
    most = asked.pop("max_steps") or float("inf")
    rollout = Rollout(loaded(file, asked), most)
    while True:
        try:
            message = wire.received(lambda count: taken(sys.stdin.buffer, count))
        except Ended:
            return
        for part in wire.packed(answer(rollout, message)):
            out.write(part)
        out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:3])
