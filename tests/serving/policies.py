"""Small real policies: actions are a linear function of what is seen."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from jala_ray.serving.contract import Observation

HORIZON, ACTIONS = 16, 7


class LinearPolicy:
    """(H, 7): W_h [state, mean of each picture, length of the instruction]; numbers its calls for each asker where asked to."""

    def __init__(
        self, state: Mapping[str, int] | None = None, cameras: tuple[str, ...] = (), seconds: float = 0.0
    ) -> None:
        widths = {"observation.state": 8} if state is None else dict(state)
        inputs = sum(widths.values()) + len(cameras) + 1
        self.weights = np.random.default_rng(3).normal(size=(HORIZON, ACTIONS, inputs))
        self.metadata: dict[str, Any] = {"state": widths, "cameras": list(cameras), "horizon": HORIZON, "fps": 20}
        self.metadata["action"] = {"arm": 6, "gripper": 1}
        self.seconds, self.seen, self.begun = seconds, [], threading.Event()

    def act(self, observation: Observation, state: dict[str, Any] | None) -> np.ndarray:
        self.begun.set()
        time.sleep(self.seconds)
        self.seen.append(observation)
        if state is not None:
            state["calls"] = state.get("calls", 0) + 1
        values = [observation.state[name] for name in self.metadata["state"]]
        means = [observation.pictures[name].mean() / 255 for name in self.metadata["cameras"]]
        inputs = np.concatenate([*values, means, [len(observation.instruction) / 100]])
        return (self.weights @ inputs).astype(np.float32)


class CountingPolicy(LinearPolicy):
    """Its first action's first value is the number of the asker's call."""

    def act(self, observation: Observation, state: dict[str, Any] | None) -> np.ndarray:
        actions = super().act(observation, state)
        actions[0, 0] = -1 if state is None else state["calls"]
        return actions


class Replayed(LinearPolicy):
    """Actions of a data set through quantile normalisation and back, by `high`, which must be that of the data set."""

    def __init__(self, high: float = 2.0) -> None:
        super().__init__()
        self.high = high

    def replay(self) -> tuple[np.ndarray, np.ndarray]:
        rows = np.random.default_rng(4).uniform(-1, 2, (50, ACTIONS))
        normal = 2 * (rows + 1) / (2.0 + 1) - 1
        return rows, (normal + 1) / 2 * (self.high + 1) - 1


def linear() -> LinearPolicy:
    return LinearPolicy()


def slow() -> LinearPolicy:
    return LinearPolicy(seconds=1.0)


def unproven() -> Replayed:
    return Replayed(high=3.0)


def libero(rng: np.random.Generator, size: int = 32) -> dict[str, Any]:
    """What openpi's LIBERO client sends."""
    return {
        "observation/image": rng.integers(0, 256, (size, size, 3), np.uint8),
        "observation/wrist_image": rng.integers(0, 256, (size, size, 3), np.uint8),
        "observation/state": rng.normal(size=8),
        "prompt": "put the bowl on the plate",
    }
