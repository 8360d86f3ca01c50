"""Where simulators live: a Python environment for each, made by uv from a lock with hashes, outside of any project."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jala_ray.registry import suggest
from jala_ray.rollouts.process import SimulatorFailed, SimulatorProcess, SimulatorStart
from jala_ray.types import ConfigError, StorageError

HERE = Path(__file__).parent
ROOT = "JALA_SIMULATORS"
"""Environment variable: the folder of environments, in place of the user's cache."""
READY = "ready.json"
TRIED = 10
"""Steps of the first trial."""
GRAPHICS = ("egl", "osmesa")
"""MuJoCo's ways to render without a display, in the order in which they are tried."""


@dataclass(frozen=True)
class SimulatorKind:
    """A simulator that is known."""

    about: str
    python: tuple[int, int] = (3, 11)
    """The oldest."""
    renders: tuple[str, ...] = GRAPHICS
    convention: str = "lerobot"
    """Keys by which a served policy is asked."""


SIMULATORS = {
    "metaworld": SimulatorKind("Meta-World 3.1.1: 50 tasks of one arm, with scripted experts"),
    "libero": SimulatorKind(
        "LIBERO's four suites, 40 tasks of 50 starts; an unofficial package", (3, 12), convention="libero"
    ),
    "pusht": SimulatorKind("gym-pusht 0.1.8: push a T onto its outline", renders=("",)),
}


def known(simulator: str) -> SimulatorKind:
    """Raises `ConfigError`."""
    if simulator not in SIMULATORS:
        expected = f"one of {', '.join(SIMULATORS)}, or a .py file of yours"
        raise ConfigError("simulator", simulator, expected, suggest(simulator, SIMULATORS))
    return SIMULATORS[simulator]


def lock_file(simulator: str) -> Path:
    return HERE / "locks" / f"{simulator}.txt"


def place_of(simulator: str) -> Path:
    """Another lock is another folder, so that what ran before still does."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    root = Path(os.environ.get(ROOT) or Path(cache) / "jala_ray" / "simulators")
    return root / f"{simulator}-{hashlib.sha256(lock_file(simulator).read_bytes()).hexdigest()[:10]}"


def start_of(simulator: str, python: str | None = None) -> SimulatorStart:
    """How to start a simulator that was set up, or a file of yours (with `python`, by default this one). Raises `ConfigError`."""
    if simulator.endswith(".py"):
        if not Path(simulator).is_file():
            raise ConfigError("simulator", simulator, "a file that is there")
        return SimulatorStart(python or sys.executable, str(Path(simulator).resolve()))
    known(simulator)
    place = place_of(simulator)
    if not (place / READY).is_file():
        raise ConfigError("simulator", simulator, f"its environment in {place}", f"jala rollouts setup {simulator}")
    return _start(simulator, place, json.loads((place / READY).read_text())["graphics"])


def _start(simulator: str, place: Path, graphics: str) -> SimulatorStart:
    variables = {"MUJOCO_GL": graphics, "PYOPENGL_PLATFORM": graphics} if graphics else {}
    return SimulatorStart(str(place / "bin/python"), str(HERE / "workers" / f"sim_{simulator}.py"), variables=variables)


def make(simulator: str, python: str | None = None, say: Callable[[str], object] = lambda _: None) -> dict[str, Any]:
    """Make the environment, unless it is there, and try it: a reset, a picture, some steps. Returns what was found, its `folder` too.

    Raises `ConfigError` for a Python that is too old, `StorageError` with uv's last lines, `SimulatorFailed` where nothing renders.
    """
    kind, place = known(simulator), place_of(simulator)
    place.parent.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        if not (place / READY).is_file():
            chosen = checked_python(python or sys.executable, kind.python)
            say(f"installing into {place}")
            install(lock_file(simulator), place, chosen)
            (place / READY).write_text(json.dumps(tried(simulator, place, kind.renders)))
        return {"folder": str(place)} | json.loads((place / READY).read_text())


def checked_python(python: str, oldest: tuple[int, int]) -> str:
    """The interpreter's path. Raises `ConfigError`."""
    asked = f"{oldest[0]}.{oldest[1]}"
    remedy = f"Pass --python of a Python {asked} or newer: /path/to/python{asked}."
    program = "import sys; print(sys.executable, *sys.version_info[:2], sep='\\n')"
    try:
        done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True, timeout=60)
        path, major, minor = done.stdout.split("\n")[:3]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigError("python", python, "an interpreter that starts", f"{remedy} ({error})") from None
    if (int(major), int(minor)) < oldest:
        raise ConfigError("python", f"{python} ({major}.{minor})", f"{asked} or newer", remedy)
    return path


def install(lock: Path, place: Path, python: str) -> None:
    """Raises `StorageError` with uv's last lines."""
    uv = _uv()
    for words in (
        ["venv", "--quiet", "--clear", "--python", python, str(place)],
        ["pip", "install", "--quiet", "--python", str(place / "bin/python"), "--require-hashes", "-r", str(lock)],
    ):
        done = subprocess.run([uv, *words], capture_output=True, text=True)
        if done.returncode:
            told = " ".join(done.stderr.strip().splitlines()[-3:])
            raise StorageError(f"environment {place}", told, "packages of the lock", "A registry must be reachable.")


def _uv() -> str:
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        raise ConfigError("uv", None, "the program uv", "pip install uv")
    return found


def tried(simulator: str, place: Path, ways: tuple[str, ...]) -> dict[str, Any]:
    """With the first way to render that works: versions, and what a step and a picture cost. Raises `SimulatorFailed`."""
    failed: SimulatorFailed | None = None
    for graphics in ways:
        try:
            return {"graphics": graphics} | trial(_start(simulator, place, graphics))
        except SimulatorFailed as error:
            failed = error
    assert failed is not None
    raise failed


def trial(start: SimulatorStart) -> dict[str, Any]:
    """Seconds of a reset, a first and a further picture, and a step."""
    with SimulatorProcess(start) as process:
        hello = process.hello()
        task = next(iter(hello["tasks"]))
        calls = {
            "reset_s": lambda: process.reset(task, 0, hello["variants"][0]),
            "first_picture_s": process.observe,
            "picture_s": process.observe,
            "steps_s": lambda: process.step(drive="idle", steps=TRIED),
        }
        seconds = {name: _timed(call) for name, call in calls.items()}
    seconds["step_s"] = seconds.pop("steps_s") / TRIED
    return {"versions": hello["versions"], "tasks": len(hello["tasks"]), "seconds": seconds}


def _timed(call: Callable[[], Mapping[str, Any]]) -> float:
    begun = time.perf_counter()
    call()
    return round(time.perf_counter() - begun, 4)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One process at a time makes an environment; others wait for it."""
    with place.with_suffix(".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
