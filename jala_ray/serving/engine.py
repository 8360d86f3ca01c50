"""One policy for all clients: one observation in work, the others waiting in the order in which they came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from jala_ray.serving.contract import Observation, Policy, acted, fitting
from jala_ray.serving.conventions import Convention
from jala_ray.serving.metrics import Metrics
from jala_ray.types import JalaError

T = TypeVar("T")


class Engine:
    """A policy behind two threads, which keep the order of what they are given: one reads messages, one acts.

    The event loop stays free meanwhile, for health checks and for who connects.
    """

    def __init__(self, policy: Policy, convention: Convention) -> None:
        self.policy, self.convention, self.metrics = policy, convention, Metrics()
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="reading")
        self._acting = ThreadPoolExecutor(1, thread_name_prefix="policy")

    async def read(self, unpack: Callable[[bytes], T], data: bytes) -> T:
        """A message, read beside the event loop. Raises `UserError`."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, unpack, data)

    async def observe(self, message: Any) -> Observation:
        """A client's message, as the policy wants it. Raises `UserError`."""

        def observed() -> Observation:
            return fitting(self.convention.read(message), self.policy.metadata)

        return await asyncio.get_running_loop().run_in_executor(self._reading, observed)

    async def act(self, observation: Observation, state: dict[str, Any] | None) -> tuple[np.ndarray, float]:
        """(actions (H, A), seconds of the policy alone). One that is cancelled while it waits never runs."""

        def work() -> tuple[np.ndarray, float]:
            begun = time.perf_counter()
            actions = acted(self.policy.act(observation, state))
            return actions, time.perf_counter() - begun

        with self.metrics.queue.track_inprogress():
            actions, seconds = await asyncio.get_running_loop().run_in_executor(self._acting, work)
        self.metrics.seconds.observe(seconds)
        return actions, seconds

    def failed(self, error: Exception) -> str:
        """Counts an error, and says what its client is told: of errors that explain themselves all, of others no more than a line."""
        self.metrics.errors.labels("refused" if isinstance(error, JalaError) else "failed").inc()
        return str(error) if isinstance(error, JalaError) else f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """Waits for the observation that is in work."""
        for pool in (self._reading, self._acting):
            pool.shutdown(cancel_futures=True)
