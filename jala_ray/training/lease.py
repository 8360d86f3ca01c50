"""One attempt at a time writes into a run folder.

Every attempt takes the next number, by a write that succeeds for one of several (`leases/00000003.json`), and holds the folder as long as
it lives. The next attempt takes over from one that was released, whose process is gone, or, where that cannot be known from here, that
showed no sign of life (`leases/OWNER.beat`) for `StorageConfig.lease_s` seconds. It need not be dead: whoever commits or logs asks first
whether a later number was taken (`Lease.check`), so that an orphan of a lost head, wherever it runs, is fenced off.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jala_ray import storage
from jala_ray.storage import StorageOptions
from jala_ray.storage.processes import began
from jala_ray.types import ConfigError, JalaError, StorageError, StoreUnavailable

FOLDER, BEAT = "leases", ".beat"
BEATS = 4
"""Signs of life within `lease_s`."""
SKEW_S = 600.0
"""Clocks of two machines differ by less than this: a sign of life that is older needs no watching."""
KEPT = 8
"""Newest leases that stay; a number must never be given out twice."""


class LeaseLost(JalaError):
    """A later attempt has taken over the run folder: nothing may be written there any more."""


@dataclass(frozen=True)
class Process:
    """Who an attempt is."""

    host: str
    machine: str
    """Boot and process name space: within it a process id means one process."""
    pid: int
    began: int
    """Clock ticks from boot to the process's start, which a later process of the same id does not share."""

    @classmethod
    def this(cls) -> Process:
        return cls(socket.gethostname(), _machine(), os.getpid(), began(os.getpid()) or 0)

    def gone(self) -> bool:
        """Known to have ended; False also where it cannot be known from here."""
        return self.machine == _machine() and began(self.pid) != self.began

    def here(self) -> bool:
        return self.machine == _machine()


@functools.cache
def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    parts = [boot.read_text().strip() if boot.exists() else socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)


@dataclass(frozen=True)
class Held:
    """A lease as it is written."""

    attempt: int
    owner: str
    token: str
    process: Process
    time: float
    """Seconds since 1970 by its holder's clock."""

    @property
    def name(self) -> str:
        return f"{self.attempt:08d}.json"

    def __str__(self) -> str:
        return f"attempt {self.attempt} on {self.process.host}, process {self.process.pid}"


@dataclass(frozen=True)
class Beat:
    """The last sign of life of an owner."""

    count: int
    time: float
    process: Process
    """The owner's, where leases may be those of its workers."""
    released: bool = False


@dataclass
class Lease:
    """A run folder held by this attempt, or by the one that this process works for (`successor`)."""

    folder: str
    held: Held
    options: StorageOptions
    lease_s: float
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _count: int = 0

    def check(self) -> None:
        """Raises `LeaseLost` when another attempt has taken over, `StoreUnavailable` when that cannot be told."""
        newest = newest_lease(self.folder, self.options)
        if newest is None or newest.token != self.held.token:
            later = "nobody: its leases are gone" if newest is None else str(newest)
            remedy = "This attempt stops without writing; the other one goes on."
            raise LeaseLost(f"run folder {self.folder}", f"held by {later}", f"held by {self.held}", remedy)

    def start(self) -> Lease:
        """Begin to show signs of life, by a thread of its own."""
        self.beat(self.options)
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return self

    def _keep(self) -> None:
        while not self._stop.wait(self.lease_s / BEATS):
            # A store that stumbles costs a beat; one that is away for longer is noticed by those who work.
            try:
                with contextlib.suppress(StorageError, StoreUnavailable):
                    self.beat(replace(self.options, patience_s=self.lease_s / BEATS))
            except Exception as error:  # whatever it is, without this thread others take the folder
                print(f"WARNING {self.folder}: a sign of life failed: {error!r}", flush=True)

    def beat(self, options: StorageOptions, *, released: bool = False) -> None:
        self._count += 1
        payload = json.dumps(asdict(Beat(self._count, time.time(), self.held.process, released))).encode()
        storage.write_bytes(_beat_address(self.folder, self.held.owner), payload, options)

    def release(self) -> None:
        """Give the folder back; the next attempt need not wait. Without an answer of the store it has to."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(StorageError, StoreUnavailable):
            self.beat(replace(self.options, patience_s=self.lease_s / BEATS), released=True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def guard(lease: Lease | None) -> Callable[[], None]:
    """What is asked before anything is written: `Lease.check`, or nothing where no one else can hold the folder."""
    return lease.check if lease is not None else lambda: None


def acquire(
    folder: str,
    options: StorageOptions | None = None,
    lease_s: float = 60.0,
    *,
    say: Callable[[str], None] = print,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease:
    """Hold the run folder. Waits at most `lease_s` seconds for a sign of life of a holder on another machine.

    Raises `ConfigError` naming the holder when it is alive, or when another attempt was faster.
    """
    options = options or StorageOptions()
    last = refuse_held(folder, options, lease_s, say=say, sleep=sleep)
    held = Held((last.attempt if last else 0) + 1, uuid.uuid4().hex, uuid.uuid4().hex, Process.this(), time.time())
    lease = Lease(folder, _taken(folder, held, options), options, lease_s).start()
    try:
        names = _names(folder, options)
        for old in [*_leases(names)[:-KEPT], *(n for n in names if n.endswith(BEAT) and n != held.owner + BEAT)]:
            storage.delete(storage.join(folder, FOLDER, old), options)
    except BaseException:
        lease.release()
        raise
    return lease


def successor(folder: str, owner: str, options: StorageOptions, lease_s: float) -> Lease:
    """A new number for a worker of `owner`'s: what an earlier worker of it still does is fenced off as well.

    It shows no signs of life, its owner does. Raises `LeaseLost` when the folder is no longer the owner's.
    """
    last = newest_lease(folder, options)
    if last is None or last.owner != owner:
        found = "nobody" if last is None else str(last)
        raise LeaseLost(f"run folder {folder}", f"held by {found}", "held by the run that started this worker")
    held = Held(last.attempt + 1, owner, uuid.uuid4().hex, Process.this(), time.time())
    try:
        return Lease(folder, _taken(folder, held, options), options, lease_s)
    except ConfigError as error:
        raise LeaseLost(error.field, error.value, f"held by {held}", "This attempt stops without writing.") from error


def _taken(folder: str, held: Held, options: StorageOptions) -> Held:
    """`held`, written and the newest. Raises `ConfigError` when another attempt was faster, `StorageError` when it can't be written."""
    payload, refused = json.dumps(asdict(held)).encode(), None
    try:
        storage.write_bytes(storage.join(folder, FOLDER, held.name), payload, options, only_new=True)
    except StorageError as error:
        refused = error
    # Asked in any case: a lost answer to a write, a store without conditional writes, a number that is free again for it was so long ago.
    newest = newest_lease(folder, options)
    if newest is not None and newest.token == held.token:
        return held
    if refused is not None and (newest is None or newest.attempt < held.attempt):
        raise refused  # by no one else
    raise _in_use(folder, newest, "just begun") from refused


def refuse_held(
    folder: str,
    options: StorageOptions,
    lease_s: float,
    *,
    say: Callable[[str], None] = print,
    sleep: Callable[[float], None] = time.sleep,
) -> Held | None:
    """The newest lease, whose holder is gone; None before the first. Writes nothing. Raises `ConfigError` when it is alive."""
    last = newest_lease(folder, options)
    if last is None:
        return last
    beat = _beat(folder, last, options)
    owner, age = beat.process, time.time() - beat.time
    holder = replace(last, process=owner)  # not one of its workers, which would be started again
    if beat.released or owner.gone() or owner == Process.this():
        return last
    if owner.here():
        known = owner.began and beat.count  # else it may be another process, or a worker
        if known or age <= lease_s:
            raise _in_use(folder, holder, f"alive, its last sign of life {max(0.0, age):.0f} s ago")
        return last
    if age > lease_s + SKEW_S:
        return last
    say(f"{folder} was held by {holder}: waiting up to {lease_s:.0f} s for a sign of life")
    until = time.monotonic() + lease_s
    while time.monotonic() < until:
        sleep(lease_s / BEATS / 4)
        now = _beat(folder, last, options)
        if now.released:
            return last
        if now.count != beat.count:
            raise _in_use(folder, holder, "alive just now")
    return last


class FolderInUse(ConfigError):
    """Another process holds the run folder, as far as is known."""

    exit_status = 1


def _in_use(folder: str, last: Held | None, seen: str) -> FolderInUse:
    remedy = "End that process first, or choose another --name."
    return FolderInUse("name", f"{folder}, held by {last} ({seen})", "a run folder that no other process holds", remedy)


def newest_lease(folder: str, options: StorageOptions) -> Held | None:
    names = _leases(_names(folder, options))
    if not names:
        return None
    stored: dict[str, Any] = json.loads(storage.read_bytes(storage.join(folder, FOLDER, names[-1]), options))
    return Held(process=Process(**stored.pop("process")), **stored)


def last_sign(folder: str, options: StorageOptions) -> Beat | None:
    """The last sign of life of the newest attempt; None for a folder that nobody ever held."""
    held = newest_lease(folder, options)
    return None if held is None else _beat(folder, held, options)


def _names(folder: str, options: StorageOptions) -> list[str]:
    try:
        return storage.list_dir(storage.join(folder, FOLDER), options)
    except storage.MissingFile:
        return []


def _leases(names: Sequence[str]) -> list[str]:
    """Those of leases, oldest first."""
    return sorted(name for name in names if name.endswith(".json") and name[:-5].isdigit())


def _beat_address(folder: str, owner: str) -> str:
    return storage.join(folder, FOLDER, owner + BEAT)


def _beat(folder: str, held: Held, options: StorageOptions) -> Beat:
    """Before the first beat the lease itself is the sign of life."""
    try:
        stored = json.loads(storage.read_bytes(_beat_address(folder, held.owner), options))
        return Beat(stored["count"], stored["time"], Process(**stored["process"]), stored["released"])
    except storage.MissingFile:
        return Beat(0, held.time, held.process)
