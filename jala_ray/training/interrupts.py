"""How a process ends: Ctrl-C after a run belongs to the caller again, SIGTERM ends all that was started, an error is a line."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from jala_ray.types import JalaError

INTERRUPTED = 130
SPEAKING_S = 15.0
_before: list[Callable[[], object]] = []


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
        _let_others_speak()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        _before.clear()  # of this run alone


def before_last_line(call: Callable[[], object]) -> None:
    """Have `guarded` call this before it prints an error, so that the error is the last line: what others say comes before."""
    _before.append(call)


def _let_others_speak() -> None:
    """At most for `SPEAKING_S`, whatever comes of it: the error is still to be told."""
    calls = list(_before)

    def speak() -> None:
        for call in calls:
            with contextlib.suppress(Exception):
                call()

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    with contextlib.suppress(KeyboardInterrupt):
        thread.join(SPEAKING_S)
