"""What writers that died left behind: unfinished files, uploads and temporary copies. Found by name, removed on request."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jala_ray.storage.diagnosis import FULL
from jala_ray.storage.files import Uri
from jala_ray.storage.processes import began
from jala_ray.storage.stores import StorageOptions, explained, store_for
from jala_ray.types import JalaError, StorageError

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
    base = Path(tempfile.gettempdir())
    if needed and shutil.disk_usage(base).free < needed:
        raise _no_room(base, purpose, needed)
    pid = os.getpid()
    folder = base / f"jala_ray-{purpose}-{socket.gethostname()}-{pid}-{began(pid) or 0}-{secrets.token_hex(4)}"
    held = None
    try:
        try:
            folder.mkdir(mode=0o700)
            held = os.open(folder, os.O_RDONLY)
            with contextlib.suppress(OSError):  # A file system without locks: the name alone says whose it is.
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
        except JalaError:
            raise
        except Exception as error:
            if _says_full(error) or shutil.disk_usage(base).free < FULL_BYTES:
                raise _no_room(base, purpose, needed) from error
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def sweep_scratch() -> Swept:
    """Remove the temporary folders (`scratch`) of this user's dead processes of this host. What can't be removed is left, and not told."""
    host, found = socket.gethostname(), {}
    named = re.compile(rf"jala_ray-.+-{re.escape(host)}-(\d+)-(\d+)-[0-9a-f]{{8}}")
    try:
        folders = list(Path(tempfile.gettempdir()).iterdir())
    except OSError:  # it may be written to, but not be listed
        folders = []
    for folder in folders:
        owner = named.fullmatch(folder.name)
        if owner is None or began(int(owner[1])) == int(owner[2]):
            continue
        with contextlib.suppress(OSError):  # Another sweep is at work, or the next one has more luck.
            if folder.stat().st_uid != os.getuid() or _locked(folder):
                continue
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
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
