"""A simulator's process, seen from here: it is asked, and has so many seconds to answer."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jala_ray.rollouts.workers import wire
from jala_ray.types import JalaError

MAIN = Path(__file__).parent / "workers" / "main.py"
BEGIN_S, ANSWER_S = 300.0, 120.0
"""For the first answer to each reset and hello, which may build a scene; and for any other."""
TAIL = 2000
"""Characters of what the process has printed that an error quotes, at most."""
OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "RAY_ADDRESS")
"""Variables of this environment that say nothing to another one."""
SINGLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}


class SimulatorFailed(JalaError):
    """A simulator's process ended, gave no answer in time, or gave one that is none."""


@dataclass(frozen=True)
class SimulatorStart:
    """How a simulator's process is started."""

    python: str
    file: str
    """Of the class `Simulator`."""
    size: int = 128
    """px of pictures, which are square."""
    cameras: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    answer_s: float = ANSWER_S
    max_steps: int | None = None
    """After which a rollout has failed, where that is earlier than the simulator's own; None: that."""

    @property
    def command(self) -> list[str]:
        settings = {"size": self.size, "cameras": list(self.cameras), "max_steps": self.max_steps}
        return [self.python, "-s", str(MAIN), self.file, json.dumps(settings)]


class SimulatorProcess:
    """One process. Every failure ends it, and is a `SimulatorFailed`."""

    def __init__(self, start: SimulatorStart) -> None:
        self.start, self._said = start, tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        inherited = {name: value for name, value in os.environ.items() if name not in OURS}
        try:
            self.process = subprocess.Popen(
                start.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env=inherited | SINGLE | dict(start.variables),
                start_new_session=True,  # Ctrl-C is ours
                bufsize=0,
            )
        except OSError as error:
            raise SimulatorFailed("simulator", start.python, "a Python that starts", str(error)) from error
        assert self.process.stdout is not None
        self._out = self.process.stdout.fileno()

    def hello(self) -> dict[str, Any]:
        """What there is: tasks, cameras, widths, bounds, rate, versions."""
        return self.ask("hello", BEGIN_S)

    def reset(self, task: str, seed: int, variant: str) -> dict[str, Any]:
        return self.ask("reset", BEGIN_S, task=task, seed=seed, variant=variant)

    def observe(self) -> dict[str, Any]:
        return self.ask("observe")

    def step(self, **how: Any) -> dict[str, Any]:
        """`Rollout.step` of workers/main.py."""
        return self.ask("step", **how)

    def ask(self, question: str, limit_s: float | None = None, **values: Any) -> dict[str, Any]:
        deadline = time.monotonic() + (self.start.answer_s if limit_s is None else max(limit_s, self.start.answer_s))
        try:
            assert self.process.stdin is not None
            for part in wire.packed({"ask": question, **values}):
                self.process.stdin.write(part)
            answer = wire.received(lambda count: self._taken(count, deadline))
        except (wire.Garbled, EOFError, OSError) as error:
            raise self._failed(question, f"{type(error).__name__}: {error}") from None
        if "error" in answer:
            raise self._failed(question, answer["error"])
        return answer

    def _taken(self, count: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            ready, _, _ = select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("no answer in time")
            more = os.read(self._out, min(count - len(data), 1 << 20))
            if not more:
                raise EOFError(f"it ended ({self._ending()})")
            data += more
        return bytes(data)

    def _ending(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.process.wait(5)
            return f"signal {-status}" if status < 0 else f"exit status {status}"
        return "it closed its output"

    def _failed(self, question: str, why: str) -> SimulatorFailed:
        self.close()
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - TAIL))
        said = " | ".join(self._said.read().decode("utf-8", "replace").split("\n")[-4:]).strip(" |")
        return SimulatorFailed(f"simulator's {question}", why, "an answer", f"It said: {said}" if said else "")

    def close(self) -> None:
        """End the process; it has nothing to save."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()

    def __enter__(self) -> SimulatorProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Simulating:
    """Who drives a simulator's process, and starts another where one has failed."""

    def __init__(self, start: SimulatorStart) -> None:
        self.start, self.stopped = start, False
        self._process: SimulatorProcess | None = None

    def process(self) -> SimulatorProcess:
        """One that runs."""
        if self._process is None:
            self._process = SimulatorProcess(self.start)
        return self._process

    def stop(self) -> None:
        """From another thread: the simulator is killed, so that who waits for it gets a `SimulatorFailed`."""
        self.stopped = True
        if (process := self._process) is not None:
            process.process.kill()

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
