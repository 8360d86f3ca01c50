"""Which requests fail, and how: drawn from a seed, the request and how often it came, so that a failure can be run again."""

from __future__ import annotations

import random
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

KINDS = ("error", "reset", "stall", "truncate", "lost")
"""error: 500, 503 or SlowDown in S3's XML. reset: RST before an answer. stall: no bytes for a while, then the end of the connection.
truncate: the full Content-Length is announced and half the body sent. lost: carried out, but the answer never arrives."""
OUTAGE = "outage"
"""Every request is reset or answered by 503 while it lasts."""
LOG_LINES = 2000
SIGNED = re.compile(r"(X-Amz-(Date|Credential|Signature)|AWSAccessKeyId|Signature|Expires)=[^&]*&?")
"""What differs in a presigned address from call to call; the same request meets the same fault."""


@dataclass(frozen=True)
class Outage:
    """The store is gone for `seconds` from request number `after` on."""

    after: int
    seconds: float


@dataclass
class Call:
    """Is made at request number `left` from now, of those in whose address `of` is found."""

    left: int
    of: str
    call: Callable[[], None]

    def meet(self, target: str) -> None:
        if re.search(self.of, unquote(target)):
            if self.left == 0:
                self.call()
            self.left -= 1


@dataclass
class FaultPlan:
    """Decides a request's fate and counts it. Raises ValueError for an unknown kind or an impossible rate."""

    seed: int = 0
    rate: float = 0.0
    """Share of requests that meet a fault, 0 to 1."""
    kinds: Sequence[str] = KINDS
    stall_s: float = 2.0
    only: str = ""
    """A regular expression: of `METHOD /path?query`, requests that it doesn't find are left alone (but for outages)."""
    outages: Sequence[Outage] = ()
    requests: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    """The newest faults: `number kind METHOD /path`."""
    _times: Counter[str] = field(default_factory=Counter)
    _gone_until: float = 0.0
    _due: list[Outage] = field(default_factory=list)
    _call: Call | None = None

    def __post_init__(self) -> None:
        self.configure(rate=self.rate, kinds=self.kinds, only=self.only, outages=self.outages)

    def configure(self, **values: Any) -> None:
        """Set seed, rate, kinds, stall_s, only or outages (of which `after` counts from now)."""
        if unknown := set(values) - {"seed", "rate", "kinds", "stall_s", "only", "outages"}:
            raise ValueError(f"{min(unknown)}: no setting of faults")
        if not 0.0 <= values.get("rate", 0.0) <= 1.0:
            raise ValueError(f"rate: got {values['rate']}, expected 0 to 1")
        if unknown := set(values.get("kinds", ())) - set(KINDS):
            raise ValueError(f"kinds: got {sorted(unknown)}, expected some of {KINDS}")
        re.compile(values.get("only", ""))
        for name, value in values.items():
            setattr(self, name, value)
        if "outages" in values:
            self._due = [Outage(self.requests + outage.after, outage.seconds) for outage in self.outages]

    def begin_outage(self, seconds: float) -> None:
        """From now on; 0 ends one."""
        self._gone_until = time.monotonic() + seconds

    def call_at(self, count: int, call: Callable[[], None], of: str = "") -> None:
        """Call something when request number `count` from now (0 is the next), of those in whose address the regular expression `of` is
        found, has come and is not yet carried out; one call at a time.
        """
        self._call = Call(count, of, call)

    @property
    def gone(self) -> bool:
        return time.monotonic() < self._gone_until

    def draw(self, method: str, target: str) -> tuple[str | None, random.Random]:
        """(kind of fault or None, random numbers for its details) of the next request."""
        request = SIGNED.sub("", f"{method} {target}")
        number, times = self.requests, self._times[request]
        self.requests += 1
        self._times[request] += 1
        if self._call is not None:
            self._call.meet(target)
        for outage in [due for due in self._due if due.after <= number]:
            self._due.remove(outage)
            self.begin_outage(outage.seconds)
        # By request and occurrence, not by number: threads of a client may come in another order.
        rng = random.Random(f"{self.seed} {request} {times}")
        kind = None
        if self.gone:
            kind = OUTAGE
        elif rng.random() < self.rate and re.search(self.only, request):
            kind = rng.choice(list(self.kinds))
        return kind, rng

    def met(self, kind: str, method: str, target: str) -> None:
        self.counts[kind] += 1
        self.log.append(f"{self.requests - 1} {kind} {method} {target}")

    def state(self) -> dict[str, Any]:
        return {"requests": self.requests, "counts": dict(self.counts), "gone": self.gone, "log": list(self.log)}
