"""Policies for the world of `reach_world.py`: they look for the dots in the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jala_ray.serving.contract import Observation

CAMERA, SPEED = "observation.images.front", 0.1
"""As the world has them, which runs in another process."""
HORIZON = 12


class Seeing:
    """(12, 2) straight to the green dot; where there is none, to the right."""

    metadata: Mapping[str, Any] = {
        "cameras": [CAMERA],
        "state": {"observation.state": 2},
        "horizon": HORIZON,
        "fps": 20,
    }

    def act(self, observation: Observation, state: dict[str, Any] | None) -> np.ndarray:
        image = observation.pictures[CAMERA]
        rows, columns = np.nonzero(image[..., 1] > 200)
        target = np.array([0.8, 0.0])
        if len(rows):
            target = np.array([columns.mean(), rows.mean()]) / (image.shape[0] - 1) * 2 - 1
        at, actions = observation.state["observation.state"].astype(np.float64), []
        for _ in range(HORIZON):
            actions.append(np.clip((target - at) / SPEED, -1, 1))
            at = at + SPEED * actions[-1]
        return np.array(actions, np.float32)


class Broken(Seeing):
    def act(self, observation: Observation, state: dict[str, Any] | None) -> np.ndarray:
        return np.zeros((4, 7), np.float32)


class Slower(Seeing):
    metadata: Mapping[str, Any] = {**Seeing.metadata, "fps": 10}


class Thinned(Seeing):
    """Of data at the simulator's rate, of which it takes every second action."""

    metadata: Mapping[str, Any] = {**Seeing.metadata, "rate_hz": 10}


class SeesMore(Seeing):
    metadata: Mapping[str, Any] = {**Seeing.metadata, "cameras": [CAMERA, "observation.images.wrist"]}


class FeelsMore(Seeing):
    metadata: Mapping[str, Any] = {**Seeing.metadata, "state": {"observation.state": 7}}


def slower() -> Slower:
    return Slower()


def thinned() -> Thinned:
    return Thinned()


def sees_more() -> SeesMore:
    return SeesMore()


def feels_more() -> FeelsMore:
    return FeelsMore()


def seeing() -> Seeing:
    return Seeing()


def broken() -> Broken:
    return Broken()
