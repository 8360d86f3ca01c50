"""Word that a run's workers are to end soon. Light: Ray's controller unpickles what a worker ended with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Notice:
    """The group of workers is to end soon, and to begin again: elsewhere, or as a larger one."""

    why: str
    """As `node 10.0.0.7 with ranks 2, 3 is taken away`."""
    deadline_s: float | None = None
    """When the first of them is gone, seconds since 1970; None where nobody hurries."""

    def left_s(self) -> float | None:
        """Seconds until then."""
        return None if self.deadline_s is None else max(0.0, self.deadline_s - time.time())

    def row(self) -> dict[str, Any]:
        """What the row of its step says of it."""
        return {"notice": self.why, "notice_left_s": self.left_s()}


class StoppedByNotice(Exception):
    """The run was told to stop here, and has saved; whoever gave the notice starts it again."""

    def __init__(self, notice: Notice, done: int) -> None:
        super().__init__(f"stopped after step {done}: {notice.why}")
