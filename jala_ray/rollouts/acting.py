"""Who acts in a rollout: a policy, asked over a network or in this process, as it is or blind; and how its chunks are executed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from jala_ray.serving.contract import Observation, Policy, acted, fitting
from jala_ray.serving.conventions import Convention
from jala_ray.serving.overlap import Overlap
from jala_ray.types import ConfigError

Act = Callable[[Observation], np.ndarray]
Observe = Callable[[], Observation]


class AskedPolicy(Protocol):
    """A policy, for many rollouts at once."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...

    def asking(self) -> Any:
        """A context with the function that a single rollout asks; what the policy keeps lives as long as it."""
        ...


@dataclass(frozen=True)
class ServedPolicy:
    """At ws://host:port, by openpi's protocol."""

    address: str
    convention: Convention
    token: str | None = None

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Raises `ConfigError` where nobody answers."""
        with self._connected() as client:
            return client.metadata

    @contextmanager
    def asking(self) -> Iterator[Act]:
        from websockets.exceptions import ConnectionClosed

        from jala_ray.serving.client import ServingError

        with self._connected() as client:

            def act(observation: Observation) -> np.ndarray:
                try:
                    return acted(client.act(self.convention.write(observation)))
                except ConnectionClosed as error:
                    raise ServingError("policy", self.address, "an answer", f"The connection ended: {error}") from None

            yield act

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        try:
            from jala_ray.serving.client import PolicyClient
        except ModuleNotFoundError as error:
            remedy = "Install the extra: pip install 'jala-ray[serve]'."
            raise ConfigError("policy", self.address, f"the package {error.name}", remedy) from None
        try:
            client = PolicyClient(self.address, self.token)
        except OSError as error:
            raise ConfigError("policy", self.address, "a server that answers", f"jala serve ({error})") from None
        try:
            yield client
        finally:
            client.close()


class HeldPolicy:
    """A policy in this process: one observation in work at a time."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self._one = policy, threading.Lock()

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.policy.metadata

    @contextmanager
    def asking(self) -> Iterator[Act]:
        state: dict[str, Any] = {}

        def act(observation: Observation) -> np.ndarray:
            with self._one:
                return acted(self.policy.act(fitting(observation, self.policy.metadata), state))

        yield act


def suited(policy: AskedPolicy, hello: Mapping[str, Any]) -> AskedPolicy:
    """The policy, if what it says of itself fits the simulator. Raises `ConfigError`; what it does not say is believed."""
    told = policy.metadata
    name = "rate_hz" if told.get("rate_hz") else "fps"  # of its actions, where that is not the data's own
    rate = told.get(name)
    if isinstance(rate, (int, float)) and abs(rate - hello["fps"]) > 1e-3 * rate:
        remedy = "It would move at another speed than in its demonstrations: post-train it on a set of this rate."
        raise ConfigError(f"policy's {name}", rate, f"{hello['fps']:g}, the simulator's steps a second", remedy)
    if missing := [name for name in told.get("cameras", ()) if name not in hello["cameras"]]:
        there = f"what the simulator shows: {', '.join(hello['cameras'])}"
        raise ConfigError("policy's cameras", missing, there, "Pass --cameras with all that it has learned from.")
    state = told.get("state", {})
    for name, width in state.items() if isinstance(state, Mapping) else ():
        if hello["state"].get(name) != width:
            raise ConfigError("policy's state", {name: width}, f"one of {hello['state']}, as the simulator tells")
    return policy


def blinded(observation: Observation) -> Observation:
    """With black pictures of the same sizes."""
    return replace(observation, pictures={name: np.zeros_like(seen) for name, seen in observation.pictures.items()})


@dataclass(frozen=True)
class Execution:
    """How chunks are executed."""

    execute: int = 8
    """Steps of a chunk, before the policy is asked again."""
    ahead: int = 0
    """Steps after its observation at which a chunk takes over; 0: the world waits for the policy."""

    def __post_init__(self) -> None:
        if self.execute < 1 or not 0 <= self.ahead <= self.execute:
            raise ConfigError("execute, ahead", (self.execute, self.ahead), "execute >= 1, and 0 <= ahead <= execute")

    @contextmanager
    def acting(self, act: Act) -> Iterator[Callable[[Observe], np.ndarray]]:
        """A function that gives the next actions (n, A), and calls `observe` where the policy is asked for them.

        With `ahead` it is a robot's own `Overlap`, by the simulator's steps in place of a clock.
        """
        if not self.ahead:
            yield lambda observe: act(observe())[: self.execute]
            return
        loop = Overlap(act, self.execute, self.ahead, patient=True)
        try:
            yield lambda observe: loop.step(observe)[None]
        finally:
            loop.close()
