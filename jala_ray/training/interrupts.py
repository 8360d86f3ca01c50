"""How a process ends: Ctrl-C after a run belongs to the caller again, SIGTERM ends all that was started, an error is a line."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from jala_ray.types import JalaError

INTERRUPTED = 130


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


def guarded(run: Callable[[], int]) -> int:
    """The exit status of `run`; an error that explains itself, and Ctrl-C, are one line each (`JalaError.exit_status`, 130)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with ended_whole():
            return run()
    except JalaError as error:
        _let_workers_finish_speaking()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _let_workers_finish_speaking() -> None:
    """A connected Ray prints what its workers said until it is left: the cause is to be the last line."""
    ray = sys.modules.get("ray")  # not imported for it
    if ray is not None and ray.is_initialized():
        ray.shutdown()
