"""The named commit in a worktree of its own, and this checkout; the same driver, outside of both, runs in each."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BASE = HERE / "BASE"
"""Names the commit that this checkout is held against."""


@dataclass(frozen=True)
class Tree:
    """A checkout, a folder for what it makes, and where the driver lies."""

    name: str
    root: Path
    own: Path
    driver: Path

    def run(self, module: str, *words: object) -> None:
        """`python -m golden.MODULE ...` in the tree, with the tree's own code. Raises `RuntimeError` where it fails."""
        with self.running(module, *words):
            pass

    @contextlib.contextmanager
    def running(self, module: str, *words: object) -> Iterator[None]:
        """The same beside what the context does; its end is waited for."""
        self.own.mkdir(parents=True, exist_ok=True)
        log, command = self.own / f"{module}.log", [sys.executable, "-m", f"golden.{module}", *map(str, words)]
        with log.open("a") as output:
            process = subprocess.Popen(command, cwd=self.root, env=self._environment(), stdout=output, stderr=output)
        try:
            yield
            failed = process.wait() != 0
        finally:
            process.kill()
            process.wait()
        if failed:
            said = log.read_text(errors="replace")[-4000:]
            raise RuntimeError(f"golden.{module} failed in {self.name} with {process.returncode}:\n{said}")

    def _environment(self) -> dict[str, str]:
        own = {"PYTHONPATH": f"{self.root}{os.pathsep}{self.driver}", "PYTHONDONTWRITEBYTECODE": "1"}
        own |= {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | own


def git(*words: str) -> str:
    """Raises `RuntimeError` with what git says."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def full_name(commit: str) -> str:
    """Raises `RuntimeError` where the commit is not in this clone."""
    try:
        return git("rev-parse", "--verify", f"{commit}^{{commit}}")
    except RuntimeError as error:
        raise RuntimeError(
            f"{error}\nThe commit {commit} is not in this clone: fetch it (git fetch --unshallow)."
        ) from error


@contextlib.contextmanager
def both(commit: str, folder: Path) -> Iterator[tuple[Tree, Tree]]:
    """(the commit's tree, this checkout with what is not committed), for as long as the context lasts."""
    name, place, driver = full_name(commit), folder / "base_tree", folder / "driver"
    shutil.copytree(HERE, driver / "golden", ignore=shutil.ignore_patterns("__pycache__"))
    git("worktree", "prune")  # of one that was killed, whose folder is gone
    git("worktree", "add", "--detach", str(place), name)
    try:
        yield (
            Tree(f"base {name[:7]}", place, folder / "base", driver),
            Tree("this checkout", ROOT, folder / "head", driver),
        )
    finally:
        git("worktree", "remove", "--force", str(place))
