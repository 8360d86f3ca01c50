"""Runs cases in a long-lived worker process; sees it crash, hang or eat memory, and finds out by which case."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.fuzz.ends import OK, TYPED, UNTYPED

CRASH, HANG, MEMORY = "CRASH", "HANG", "MEMORY"
BAD = (UNTYPED, CRASH, HANG, MEMORY)
OUTCOMES = (OK, TYPED, *BAD)
_ORDER = {outcome: i for i, outcome in enumerate(OUTCOMES)}
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Limits:
    """Of one case."""

    cpu_s: float = 10.0
    """CPU time: other work on the machine must not look like a hang."""
    wall_s: float = 120.0
    """For what waits without computing."""
    resident_bytes: int = 1 << 30
    """Growth of the worker's memory."""
    address_bytes: int = 4 << 30
    """Growth of what is mapped; set in the worker, as allocations beyond must fail rather than fill the machine."""
    start_s: float = 300.0
    """Until the worker has imported what it needs."""


@dataclass(frozen=True)
class Result:
    """How a case ended: by the worst of its steps."""

    case: int
    outcome: str
    detail: str = ""
    """The error's class; the trace and the step of what should not have been."""
    cpu_s: float = 0.0
    bytes: int = 0


@dataclass
class Worker:
    """One process, started with `python -m MODULE SETTINGS`. Its files lie in `folder`, which must exist."""

    module: str
    settings: dict[str, object]
    folder: Path
    limits: Limits
    done: list[int] = field(default_factory=list)
    """Cases that this process has run, in order."""

    def __post_init__(self) -> None:
        settings = self.settings | {"folder": str(self.folder), "address_bytes": self.limits.address_bytes}
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - for the life of the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            bufsize=0,
        )
        self._rest = b""
        self._last_line = b""
        if not self._wait(self.limits.start_s, self.limits.start_s):
            self.close()
            raise RuntimeError(f"the fuzzing worker does not start: {self._said()}")

    def run(self, number: int) -> Result:
        """One case. After a crash or hang the process is gone: `alive` is False."""
        assert self._process.stdin is not None
        self.done.append(number)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{number}\n".encode())
        if self._wait(self.limits.cpu_s, self.limits.wall_s):
            return self._result(json.loads(self._last_line))
        code = self._process.poll()
        if code is None:
            self._process.send_signal(signal.SIGABRT)  # the fault handler tells where every thread is
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            self.close()
            return Result(number, HANG, self._said())
        self.close()
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return Result(number, CRASH, f"{name}\n{self._said()}")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        if self.alive:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]

    def _wait(self, cpu_s: float, wall_s: float) -> bool:
        """Whether the process wrote a line, kept in `_last_line`, before it ended or ran past a limit."""
        assert self._process.stdout is not None
        began, spent = time.monotonic(), self._cpu()
        while b"\n" not in self._rest:
            if select.select([self._process.stdout], [], [], 0.5)[0]:
                part = os.read(self._process.stdout.fileno(), 1 << 20)
                if not part:
                    self._process.wait()
                    return False
                self._rest += part
            elif time.monotonic() - began > wall_s or self._cpu() - spent > cpu_s:
                return False
        self._last_line, _, self._rest = self._rest.partition(b"\n")
        return True

    def _cpu(self) -> float:
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return times.user + times.system

    def _said(self) -> str:
        """The end of what the process wrote to standard error, without the fault handler's list of modules."""
        self._errors.seek(0)
        return self._errors.read().partition("\nExtension modules:")[0][-4000:]

    def _result(self, answer: dict) -> Result:
        step, outcome, detail = max(answer["outcomes"], key=lambda found: _ORDER[found[1]])
        detail = f"{step}: {detail}" if outcome == UNTYPED else detail
        if outcome in (OK, TYPED) and answer["bytes"] > self.limits.resident_bytes:
            outcome, detail = MEMORY, f"{answer['bytes'] >> 20} MiB"
        return Result(answer["case"], outcome, detail, answer["cpu_s"], answer["bytes"])


@dataclass
class Driver:
    """Runs cases; what went wrong is left in `found`, a folder a case: its files and `report.txt`."""

    module: str
    settings: dict[str, object]
    folder: Path
    found: Path
    limits: Limits = field(default_factory=Limits)
    cases_a_worker: int = 2000

    def run(self, numbers: Sequence[int]) -> Iterator[Result]:
        worker = self._start()
        try:
            for number in numbers:
                if len(worker.done) >= self.cases_a_worker or not worker.alive:
                    worker.close()
                    worker = self._start()
                result = worker.run(number)
                if result.outcome in BAD:
                    self._keep(result, worker.done)
                yield result
        finally:
            worker.close()

    def _start(self) -> Worker:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return Worker(self.module, self.settings, self.folder, self.limits)

    def _keep(self, result: Result, done: list[int]) -> None:
        place = self.found / f"{result.case:06d}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.folder, place)
        culprits = self._culprits(done) if result.outcome == CRASH else [result.case]
        (place / "report.txt").write_text(f"{result.outcome}, cases {culprits}\n{result.detail}\n")

    def _culprits(self, done: list[int]) -> list[int]:
        """The shortest run of cases, ending with the last one, that crashes a fresh worker again; none if nothing does."""
        length = 1
        while True:
            worker = self._start()
            try:
                if any(worker.run(number).outcome == CRASH for number in done[-length:]):
                    return worker.done
            finally:
                worker.close()
            if length >= len(done):
                return []
            length *= 4
