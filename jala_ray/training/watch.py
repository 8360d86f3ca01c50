"""A process that waits says what for and since when, so that nothing hangs without a word. Knows no Ray.

```
with waiting_for("the data of step 12"):
    share = next(stream)
```

costs about a microsecond. What lasts longer than a minute is printed, again whenever it has lasted twice as long, and when it ends.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

PATIENCE_S = 60.0

Say = Callable[[str], None]


def say(line: str) -> None:
    print(line, flush=True)


def pause(patience_s: float) -> float:
    """Seconds between two looks at what lasts: some looks while the patience lasts, none of them costly."""
    return max(patience_s / 12, 0.02)


@dataclass
class Reminders:
    """When to speak of what lasts: after `patience_s`, then whenever it has lasted twice as long as when it was last spoken of."""

    patience_s: float
    _said: dict[Hashable, float] = field(default_factory=dict)
    """Seconds that each had lasted then."""

    def due(self, lasting: Mapping[Hashable, float]) -> dict[Hashable, float]:
        """Of what lasts, by its seconds, that which is to be spoken of now."""
        due = {k: s for k, s in lasting.items() if s >= (2 * self._said[k] if k in self._said else self.patience_s)}
        self._said |= due
        return due

    def ended(self, lasting: Mapping[Hashable, float]) -> list[Hashable]:
        """What was spoken of and lasts no more; each once."""
        gone = [key for key in self._said if key not in lasting]
        for key in gone:
            del self._said[key]
        return gone


class Waiting:
    """One `with waiting_for(...)`. Those of a thread are a chain, innermost first."""

    __slots__ = ("_outer", "_thread", "_watch", "since", "what")

    def __init__(self, watch: Watch, what: str) -> None:
        self._watch, self.what = watch, what

    def __enter__(self) -> None:
        # Single operations on a dictionary, each by its own thread's key: no lock is needed.
        self._thread, self.since = threading.get_ident(), time.monotonic()
        waits = self._watch.waits
        self._outer = waits.get(self._thread)
        waits[self._thread] = self
        if self._watch.thread is None:
            self._watch.start()

    def __exit__(self, *exception: object) -> None:
        if self._outer is None:
            del self._watch.waits[self._thread]
        else:
            self._watch.waits[self._thread] = self._outer

    def chain(self) -> list[Waiting]:
        """From the outermost wait to this one."""
        return [*(self._outer.chain() if self._outer is not None else []), self]


@dataclass
class Watch:
    """The waits of a process, and the thread that speaks of those that last. `rank` and `world` stand in front of what it says."""

    patience_s: float = PATIENCE_S
    say: Say = say
    rank: int = 0
    world: int = 1
    waits: dict[int, Waiting] = field(default_factory=dict)
    """The innermost wait of each thread."""
    thread: threading.Thread | None = None
    changed: threading.Event = field(default_factory=threading.Event)
    """Ends a pause of the thread that began under another patience."""
    _starting: threading.Lock = field(default_factory=threading.Lock)

    def waiting_for(self, what: str) -> Waiting:
        return Waiting(self, what)

    def start(self) -> None:
        with self._starting:
            if self.thread is None:
                self.thread = threading.Thread(target=self._look, name="says what it waits for", daemon=True)
                self.thread.start()

    def _look(self) -> None:
        reminders, seen = Reminders(self.patience_s), dict[Hashable, Waiting]()
        while True:
            self.changed.wait(pause(self.patience_s))
            self.changed.clear()
            reminders.patience_s, now, lasting = self.patience_s, time.monotonic(), dict[Hashable, float]()
            for wait in list(self.waits.values()):
                first = wait.chain()[0]
                lasting[first] = now - first.since
                seen[first] = wait
            for first, seconds in reminders.due(lasting).items():
                self.say(f"{self._who()} has waited {seconds:.0f} s for {_path(seen[first])}")
            for first in reminders.ended(lasting):
                wait = seen[first].chain()[0]
                self.say(f"{self._who()} goes on after {now - wait.since:.0f} s: {wait.what}")
            seen = {first: wait for first, wait in seen.items() if first in lasting}

    def _who(self) -> str:
        return f"rank {self.rank} of {self.world}" if self.world > 1 else "the run"


def _path(wait: Waiting) -> str:
    first, *inner = wait.chain()
    since = time.strftime("%H:%M:%S", time.localtime(time.time() - (time.monotonic() - first.since)))
    return ", now for ".join([f"{first.what} (since {since})", *(w.what for w in inner)])


_watch = Watch()


def configure(*, rank: int = 0, world: int = 1, patience_s: float = PATIENCE_S) -> None:
    """Who this process is, and how long it waits without a word."""
    _watch.rank, _watch.world, _watch.patience_s = rank, world, patience_s
    _watch.changed.set()


def waiting_for(what: str) -> Waiting:
    """A context for what may block: `what` is printed with the rank when it lasts. Contexts may be nested; any thread may use them."""
    return Waiting(_watch, what)


def _forked() -> None:
    # Threads do not survive a fork, and the parent's waits are not the child's.
    _watch.thread, _watch.changed = None, threading.Event()
    _watch.waits.clear()


os.register_at_fork(after_in_child=_forked)
