"""Signals: Ctrl-C after a run belongs to the caller again; SIGTERM ends a process with all that it started."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_given_back() -> Iterator[None]:
    """What the body makes of SIGINT ends with it.

    Ray 2.60's `TorchTrainer.fit` and `Tuner.fit` leave a handler behind that asks their own controller to end: once that is gone, a
    Ctrl-C in a notebook raises an error of theirs, or none.
    """
    if threading.current_thread() is not threading.main_thread():  # where none can be set
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if before is not None:  # set from C, and not to be had
            signal.signal(signal.SIGINT, before)


@contextmanager
def ended_whole() -> Iterator[None]:
    """SIGTERM ends the body as an exception would: what it started is ended too, and a run folder that it holds is given back."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # where none can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
