"""A worker whose cases are known to end badly, so that the driver can be seen to notice."""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterator

from jala_ray.types import VideoError
from tests.fuzz.ends import Outcome, end_of
from tests.fuzz.worker import serve

_armed: list[int] = []


def typed() -> None:
    raise VideoError("video", "planted", "none")


def untyped() -> None:
    raise ZeroDivisionError("planted")


def crash() -> None:
    ctypes.string_at(0)


def spin() -> None:
    while True:
        pass


def wait() -> None:
    time.sleep(3600)


def fill() -> int:
    return len(b"x" * (300 << 20))


def ask_for_100_gb() -> int:
    return len(bytearray(100 << 30))


def arm() -> None:
    _armed.append(1)


def crash_if_armed() -> None:
    if _armed:
        crash()


CASES: tuple[Callable[[], object], ...] = (
    *(lambda: None, typed, untyped, crash, spin, wait, fill),
    *(ask_for_100_gb, arm, crash_if_armed),
)


def run(number: int) -> Iterator[Outcome]:
    yield "well", *end_of(lambda: None)
    yield "planted", *end_of(CASES[number])


if __name__ == "__main__":
    serve(run, json.loads(sys.argv[1])["address_bytes"])
