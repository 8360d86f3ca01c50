"""How long a store may fail: one budget of seconds from end to end, whatever layers, requests and threads wait on it.

An outage begins with the first request that fails and ends with any answer. Nothing below or above tries again by itself.
"""

from __future__ import annotations

import contextvars
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from jala_ray.storage.diagnosis import Diagnosis, diagnose

R = TypeVar("R")
T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
SHORTEST_PAUSE_S = 0.001
"""A budget of which less is left is spent: sums of seconds are not exact."""
FIRST_WORD_S = 5.0
"""An outage is spoken of after so many seconds, then whenever it has lasted twice as long."""

logger = logging.getLogger(__name__)
clock = time.monotonic


class GaveUp(Exception):
    """A store did not answer for as long as it may. `first` is the error that began it."""

    def __init__(self, first: Exception, tries: int, seconds: float) -> None:
        super().__init__(f"{tries} tries in {seconds:.0f} s, first {first}")
        self.first, self.tries, self.seconds = first, tries, seconds


@dataclass
class _Outage:
    since: float
    last: float
    """The newest failure."""
    word_at: float = FIRST_WORD_S
    """Seconds after which it is next spoken of."""


class _Watch:
    """When each store answered and failed, for the whole process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.answers: dict[str, float] = {}
        self.outages: dict[str, _Outage] = {}

    def answered(self, store: str) -> None:
        self.answers[store] = now = clock()
        if store not in self.outages:  # The usual case takes no lock.
            return
        with self.lock:
            ended = self.outages.pop(store, None)
        if ended is not None and ended.word_at > FIRST_WORD_S:
            logger.warning("store %s answers again, after %.0f s", store, now - ended.since)

    def failed(self, store: str, started: float, budget_s: float, cause: str) -> float:
        """Note a try that began at `started`; returns when the outage began."""
        now = clock()
        with self.lock:
            outage = self.outages.get(store)
            if (
                outage is None or started - outage.last > budget_s
            ):  # So long nobody asked: nothing is known of that time.
                since = max(started, self.answers.get(store, started))
                outage = self.outages[store] = _Outage(since, now)
            outage.last = max(outage.last, now)
            waited = now - outage.since
            speaks = outage.word_at <= waited < budget_s
            while speaks and outage.word_at <= waited:
                outage.word_at *= 2
        if speaks:
            logger.warning(
                "store %s has not answered for %.0f s (%s); waiting up to %.0f s", store, waited, cause, budget_s
            )
        return outage.since


_watch = _Watch()


def _after_fork() -> None:
    _watch.lock = threading.Lock()  # The one here may be held by a thread that is not.


os.register_at_fork(after_in_child=_after_fork)


class Patience:
    """The tries of one piece of work at a store.

    `again` after a failure says whether to try once more, and pauses before; `answered` after any success, of a part of the work
    too, begins the count anew.
    """

    def __init__(self, store: str, budget_s: float, on_failure: Callable[[Diagnosis], None] | None = None) -> None:
        self.store, self.budget_s, self.on_failure = store, budget_s, on_failure
        self.first: Exception | None = None
        self.tries = 0
        self.begun = self.started = clock()

    def answered(self) -> None:
        _watch.answered(self.store)
        if self.first is not None:
            self.first, self.tries = None, 0
        self.begun = self.started = clock()

    def again(self, error: Exception) -> bool:
        """Whether the error may pass, after a pause with growing, random length. Raises GaveUp once the budget is spent."""
        found = diagnose(error)
        if found is None or found.kind != "passing":
            if found is not None:  # A refusal is an answer.
                _watch.answered(self.store)
            return False
        self.first = self.first or error
        self.tries += 1
        since = _watch.failed(self.store, self.started, self.budget_s, found.cause)
        waited = clock() - min(since, self.begun)
        if waited > self.budget_s - SHORTEST_PAUSE_S:
            raise GaveUp(self.first, self.tries, waited) from self.first
        if self.on_failure is not None:
            self.on_failure(found)
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self.tries, 20))
        pause(min(random.uniform(0, longest), self.budget_s - waited))
        self.started = clock()
        return True


def patiently(
    work: Callable[[], R], store: str, budget_s: float, on_failure: Callable[[Diagnosis], None] | None = None
) -> R:
    """`work()`, tried again while it fails for reasons that pass. Raises GaveUp after `budget_s` seconds, other errors as they come."""
    patience = Patience(store, budget_s, on_failure)
    while True:
        try:
            result = work()
        except Exception as error:
            if not patience.again(error):
                raise
        else:
            patience.answered()
            return result


class Stopped(BaseException):
    """Whoever asked for this work is gone; ends a waiting thread."""


class _Stop:
    """Tells the threads of a `parallel` call, and those that they started, that nobody waits for them any more."""

    def __init__(self, above: _Stop | None) -> None:
        self.above, self.event = above, threading.Event()

    def is_set(self) -> bool:
        return self.event.is_set() or (self.above is not None and self.above.is_set())


_stop: contextvars.ContextVar[_Stop | None] = contextvars.ContextVar("_stop", default=None)
_GLANCE_S = 0.2


def pause(seconds: float) -> None:
    """Sleep. Raises Stopped in a thread whose work is no longer wanted."""
    stop = _stop.get()
    if stop is None:
        time.sleep(seconds)
        return
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not stop.is_set():
        stop.event.wait(min(left, _GLANCE_S))
    if stop.is_set():
        raise Stopped


def parallel(work: Callable[[T], R], items: Iterable[T], workers: int) -> list[R]:
    """`work` of every item, in threads. The first error, or an interruption of the caller, ends the waits of all of them."""
    stop = _Stop(_stop.get())

    def run(item: T) -> R:
        _stop.set(stop)
        return work(item)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            stop.event.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
