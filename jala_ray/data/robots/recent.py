"""What a process read last, within a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Recent:
    """What was read last, up to so many bytes. Threads that ask for one thing at once read it once."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._held: OrderedDict[Hashable, tuple[Future[Any], int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, read: Callable[[], T], size: Callable[[T], int]) -> T:
        """`read()`, or what it gave before; `size(of it)` in bytes. What it raises is raised to all who wait, and not kept."""
        with self._lock:
            found = self._held.get(key)
            mine = found is None
            future: Future[Any] = Future() if found is None else found[0]
            if mine:
                self._held[key] = future, 0
            self._held.move_to_end(key)
        if mine:
            try:
                value = read()
            except BaseException as error:
                with self._lock:
                    self._held.pop(key, None)
                future.set_exception(error)
                raise
            self._keep(key, future, size(value))
            future.set_result(value)
        return future.result()

    def _keep(self, key: Hashable, future: Future[Any], size: int) -> None:
        with self._lock:
            self._held[key] = future, size
            self.bytes += size
            if self.bytes > self.most_bytes:
                self._let_go(key)

    def _let_go(self, newest: Hashable) -> None:
        """Of what is read already, from the oldest on, until the rest fits."""
        excess, old = self.bytes - self.most_bytes, list[Hashable]()
        for key, (future, size) in self._held.items():
            if excess <= 0:
                break
            if key != newest and future.done():
                old.append(key)
                excess -= size
        for key in old:
            self.bytes -= self._held.pop(key)[1]
