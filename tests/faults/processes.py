"""Commands of the project in processes of their own, that are watched by what they print and may be killed at a chosen moment.

They are forked from a server that has imported everything once (`multiprocessing`'s), since torch takes seconds to import; or started as
a user would, with `fork=False`.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KILL_AT, KILL_UNDER, KILL_OF = "FAULTS_KILL_AT", "FAULTS_KILL_UNDER", "FAULTS_KILL_OF"
"""In a forked command's environment: SIGKILL itself at file operation number KILL_AT below one of the folders KILL_UNDER (`:` between), of
those in whose path the regular expression KILL_OF is found.
"""
KILL_AFTER = "FAULTS_KILL_AFTER"
"""The same: when it has printed a line that begins so, before it does anything else."""
FILE_EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"}
PRELOAD = ["tests.faults.preload"]


def file_operations(folders: Sequence[str], kill_at: int, of: str) -> Iterator[int]:
    """Count this process's file operations below `folders` in whose path `of` is found, from now on; at number `kill_at` it dies."""
    numbers = itertools.count()

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        path = arguments[0] if event in FILE_EVENTS else None
        name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if name.startswith(tuple(folders)) and re.search(of, name) and next(numbers) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return numbers


def die_after(beginning: str) -> None:
    """Let this process die when it has printed a line that begins so."""
    write = sys.stdout.write

    def watched(text: str, /) -> int:
        if text.startswith(beginning):
            write(text.rstrip("\n") + "\n")
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return write(text)

    sys.stdout.write = watched


def _forked(words: Sequence[str], environment: Mapping[str, str], log: str, folder: str) -> None:
    """A forked child's life: what `python WORDS` would do."""
    with open(log, "ab", 0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    tempfile.tempdir = None  # TMPDIR may be another
    import torch  # the server has imported it

    torch.set_num_threads(1)
    counted = None
    if kill_at := environment.get(KILL_AT):
        counted = file_operations(environment[KILL_UNDER].split(":"), int(kill_at), environment.get(KILL_OF, ""))
    if beginning := environment.get(KILL_AFTER):
        die_after(beginning)
    try:
        if words[0] == "-m":
            sys.argv = [words[1], *words[2:]]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            runpy.run_path(words[0], run_name="__main__")
    finally:
        if counted is not None:
            print(f"{next(counted)} file operations", flush=True)


@dataclass
class Command:
    """A running command. Its output goes to the end of `log`. As a context it ends with it: what still runs is killed."""

    process: BaseProcess | subprocess.Popen[bytes]
    log: Path
    begin: int
    """Bytes of the log before it began."""

    @classmethod
    def start(
        cls, words: Sequence[str], environment: Mapping[str, str], log: Path, *, fork: bool = True, folder: Path = ROOT
    ) -> Command:
        """`python WORDS` in `folder`, with `environment` beside this process's own."""
        wanted = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        wanted |= environment
        begin = log.stat().st_size if log.exists() else 0
        if not fork:
            with log.open("ab") as output:
                started = subprocess.Popen(
                    [sys.executable, "-u", *words], cwd=folder, env=wanted, stdout=output, stderr=subprocess.STDOUT
                )
            return cls(started, log, begin)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        process = context.Process(target=_forked, args=(list(words), wanted, str(log), str(folder)))
        process.start()
        return cls(process, log, begin)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *exception: object) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def rc(self) -> int | None:
        """None while it runs; minus the signal's number if it was killed."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    def signal(self, number: int) -> None:
        if self.rc is None:  # else the pid may be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, seconds: float = 600.0) -> int:
        """Its exit code. Raises TimeoutError, after killing it."""
        deadline = time.monotonic() + seconds
        while self.rc is None:
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                raise TimeoutError(f"still running after {seconds} s:\n{self.output[-4000:]}")
            time.sleep(0.02)
        assert self.rc is not None
        return self.rc

    @property
    def output(self) -> str:
        """All it has printed so far."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(self.begin)
            return file.read().decode(errors="replace")

    def lines(self, seconds: float = 600.0) -> Iterator[str]:
        """Whole lines as they are printed, until it ends. Raises TimeoutError."""
        deadline, seen = time.monotonic() + seconds, 0
        while True:
            ended = self.rc is not None
            whole, _, _ = self.output.rpartition("\n")
            lines = whole.split("\n") if whole else []
            yield from lines[seen:]
            seen = len(lines)
            if ended:
                return
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                raise TimeoutError(f"still running after {seconds} s:\n{self.output[-4000:]}")
            time.sleep(0.02)
