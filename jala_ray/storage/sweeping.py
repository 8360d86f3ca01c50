"""What writers that died left behind: unfinished files, uploads and temporary copies. Found by name, removed on request."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jala_ray.storage.diagnosis import FULL
from jala_ray.storage.files import Uri
from jala_ray.storage.processes import began
from jala_ray.storage.stores import StorageOptions, explained, store_for
from jala_ray.types import JalaError, StorageError

SHARED = "jala_ray-shared-"
"""What the name of a folder begins with that several processes of a machine hold."""
FULL_BYTES = 1024 * 1024
"""A file system with less than this left is full: writers fail a little before the last byte."""


@dataclass(frozen=True)
class Swept:
    """What a sweep removed."""

    names: tuple[str, ...] = ()
    bytes: int = 0

    def __str__(self) -> str:
        shown = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
        return f"{len(self.names)} leftovers, {self.bytes / 1e6:.1f} MB: {shown}" if self.names else "nothing"


def sweep(uri: Uri, options: StorageOptions | None = None) -> Swept:
    """Remove what dead writers left anywhere below a folder: on disk `.NAME.xxxxxxxx.part` files and folders, on S3 unfinished
    multipart uploads (nothing lists them, they cost storage until aborted) and, directly in the folder, what was named so.

    Only for who holds the folder: what a live writer is at work on goes too, and its write fails. Raises StorageError.
    """
    with explained("sweep", uri, options):
        store, path = store_for(uri, options)
        found = store.sweep(path)
    return Swept(tuple(sorted(found)), sum(found.values()))


@contextlib.contextmanager
def scratch(purpose: str, needed: int = 0) -> Iterator[Path]:
    """A new temporary folder, removed at the end; its name says whose it is, so that `sweep_scratch` finds it if this process is killed.

    Raises StorageError if there are less than `needed` bytes, or if the work inside fails because the disk is full; the error
    names the folder, what is free and what is needed, and says how to use another disk.
    """
    base, pid = Path(tempfile.gettempdir()), os.getpid()
    folder = base / f"jala_ray-{purpose}-{socket.gethostname()}-{pid}-{began(pid) or 0}-{secrets.token_hex(4)}"
    held = None
    try:
        with _room_for(purpose, needed):
            folder.mkdir(mode=0o700)
            held = os.open(folder, os.O_RDONLY)
            with contextlib.suppress(OSError):  # A file system without locks: the name alone says whose it is.
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


@contextlib.contextmanager
def shared_scratch(purpose: str, key: str, fill: Callable[[Path], None], needed: int = 0) -> Iterator[Path]:
    """A temporary folder that this user's processes on this machine have in common under `key`: the first one `fill`s it while the others
    wait, the last one removes it, and `sweep_scratch` one that nobody is left of. Where files have no locks, or another user has taken the
    name, it is each process's own.

    Raises as `scratch`.
    """
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    # By host, as locks of a temporary folder that machines share may hold on one of them alone.
    folder = Path(tempfile.gettempdir()) / f"{SHARED}{purpose}-{socket.gethostname()}-{os.getuid()}-{name}"

    def filled() -> None:
        with _room_for(purpose, needed):
            fill(folder)

    try:
        held = _joined(folder, filled)
    except _NotSharedError:
        with scratch(purpose, needed) as own:
            fill(own)
            yield own
        return
    try:
        yield folder
    finally:
        _remove_last(held, folder)


FILLED = ".filled"
PAUSES_S = 0.005, 0.05
"""Between two tries of a process to fill a folder, at random, so that two don't keep each other from it."""


class _NotSharedError(Exception):
    """This file system has no locks, or the folder is another user's, who may have put anything into it."""


def _joined(folder: Path, fill: Callable[[], None]) -> int:
    """A handle that holds a folder together with other processes, once it is filled."""
    while True:
        with contextlib.suppress(FileNotFoundError):  # of `open`: the last one of others has removed it
            handle = _own_folder(folder)
            try:
                _lock(handle, fcntl.LOCK_SH)  # waits for who fills it
                held = (folder / FILLED).exists() or _filled(handle, folder, fill)
                if held and _is(handle, folder) and (folder / FILLED).exists():
                    return handle
            except BaseException:
                _remove_last(handle, folder)
                raise
            os.close(handle)
            if not held:
                time.sleep(random.uniform(*PAUSES_S))


def _filled(handle: int, folder: Path, fill: Callable[[], None]) -> bool:
    """Fill a folder, unless another process is in it, and hold it together with others; whether it is held.

    It is not waited for: who has filled it meanwhile stays in it, perhaps until this process is there too.
    """
    _lock(handle, fcntl.LOCK_UN)
    try:
        _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if _is(handle, folder):
        _fill(folder, fill)
    _lock(handle, fcntl.LOCK_SH)  # in two steps, between which it may be removed
    return True


def _own_folder(folder: Path) -> int:
    """Made where it is not there, and opened. Its name can be foreseen, so another user's may be there, or a link."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _NotSharedError from error
    if os.fstat(handle).st_uid == os.getuid():
        return handle
    os.close(handle)
    raise _NotSharedError


def _lock(handle: int, kind: int) -> None:
    try:
        fcntl.flock(handle, kind)
    except BlockingIOError:
        raise
    except OSError as error:
        raise _NotSharedError from error


def _is(handle: int, folder: Path) -> bool:
    return folder.exists() and os.path.samestat(os.fstat(handle), folder.stat())


def _fill(folder: Path, fill: Callable[[], None]) -> None:
    """Unless another process has; what one that died in it has left goes first."""
    if (folder / FILLED).exists():
        return
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    fill()
    (folder / FILLED).touch()


def _remove_last(handle: int, folder: Path) -> bool:
    """Let a folder go, and remove it if nobody else holds it; whether it was."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = _is(handle, folder)
        if alone:
            shutil.rmtree(folder, ignore_errors=True)
        return alone
    except OSError:
        return False
    finally:
        os.close(handle)


@contextlib.contextmanager
def _room_for(purpose: str, needed: int) -> Iterator[None]:
    """Raises StorageError if there are less than `needed` bytes for temporary files, or if what happens within fails for want of room."""
    base = Path(tempfile.gettempdir())
    if needed and shutil.disk_usage(base).free < needed:
        raise _no_room(base, purpose, needed)
    try:
        yield
    except JalaError:
        raise
    except Exception as error:
        if _says_full(error) or shutil.disk_usage(base).free < FULL_BYTES:
            raise _no_room(base, purpose, needed) from error
        raise


def sweep_scratch() -> Swept:
    """Remove the temporary folders (`scratch`) of this user's dead processes of this host. What can't be removed is left, and not told."""
    host, found = socket.gethostname(), {}
    named = re.compile(rf"jala_ray-.+-{re.escape(host)}-(\d+)-(\d+)-[0-9a-f]{{8}}")
    shares = re.compile(rf"{SHARED}.+-{re.escape(host)}-{os.getuid()}-[0-9a-f]{{16}}")
    try:
        folders = list(Path(tempfile.gettempdir()).iterdir())
    except OSError:  # it may be written to, but not be listed
        folders = []
    for folder in folders:
        owner, shared = named.fullmatch(folder.name), shares.fullmatch(folder.name)
        if not shared and (owner is None or began(int(owner[1])) == int(owner[2])):
            continue
        with contextlib.suppress(OSError):  # Another sweep is at work, or the next one has more luck.
            if folder.stat().st_uid != os.getuid():
                continue
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            if shared:
                _remove_last(os.open(folder, os.O_RDONLY), folder)
            elif not _locked(folder):
                shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                found[folder.name] = size
    return Swept(tuple(sorted(found)), sum(found.values()))


def _locked(folder: Path) -> bool:
    """Whether a live process holds the folder: one of another container on this machine has a number that means nothing here."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _says_full(error: BaseException | None) -> bool:
    """Whether an error, or what it arose from, is a full disk: some libraries tell it in words alone."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in FULL) or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _no_room(base: Path, purpose: str, needed: int) -> StorageError:
    free = shutil.disk_usage(base).free
    wanted = f"{needed} bytes for {purpose}" if needed else f"room for {purpose}"
    return StorageError(
        f"temporary folder {base}",
        f"{free} bytes free",
        wanted,
        "Free space there, or set TMPDIR to a folder on a larger disk.",
    )
