"""What a run on a bucket has written so far is brought there by time, beside the steps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

UNFINISHED = ".new"
"""Suffix of files that are being written."""


class Changed:
    """Files below a folder that differ from what was brought away last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[int, int]] = {}

    def bring(self, bring: Callable[[str, bytes], None]) -> int:
        """Call `bring` with name and bytes of each; how many there were. One that raises is tried again the next time, and so are those
        after it.
        """
        count = 0
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file() and p.suffix != UNFINISHED):
            name, state = path.relative_to(self.folder).as_posix(), path.stat()
            mark = (state.st_size, state.st_mtime_ns)
            if self._known.get(name) != mark:
                bring(name, path.read_bytes())
                self._known[name] = mark
                count += 1
        return count

    def forget(self) -> None:
        """What was brought: the next time everything is."""
        self._known.clear()


class Pusher:
    """Calls `push` every `every_s` seconds from a thread of its own. What goes wrong is one warning, until it goes well again: it never
    ends a run, whose next row or checkpoint meets the same store.
    """

    def __init__(self, push: Callable[[], object], every_s: float) -> None:
        self.push, self.every_s = push, every_s
        self._over = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="push of the run's log", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._over.wait(self.every_s):
            try:
                self.push()
                self._warned = False
            except Exception as error:
                self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            print(f"WARNING the run's log could not be brought to its folder: {error}. The run goes on.", flush=True)

    def close(self) -> None:
        """No push begins after this; one under way is waited for."""
        self._over.set()
        self._thread.join()
