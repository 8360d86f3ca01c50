"""Addresses, options, and the two stores (local disk, S3) behind one small contract."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from jala_ray.types import StorageError

MULTIPART_THRESHOLD = 5 * 1024 * 1024
"""Objects up to this many bytes go in one PUT; S3 allows no smaller part."""
STREAM_CHUNK = 1024 * 1024


class MissingFile(StorageError):
    """There is no file or object at this address."""


@dataclass(frozen=True)
class StorageOptions:
    """How `s3://` addresses are reached; local paths need none of it. Never holds a secret."""

    endpoint_url: str | None = None
    """S3-compatible server, e.g. http://store:9000; None: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, else AWS
    itself.
    """
    region: str | None = None
    """None: AWS_REGION, AWS_DEFAULT_REGION, else us-east-1."""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0
    attempts: int = 4
    """Tries a request in all, the first included; pauses between them grow."""
    patience_s: float = 180.0
    """How long a store may fail to answer, seconds, before the work that needs it fails with `StoreUnavailable`."""

    def resolved(self) -> StorageOptions:
        """The same with the environment's values in place of None."""
        environ = os.environ
        endpoint = self.endpoint_url or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
        region = self.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return replace(self, endpoint_url=endpoint or None, region=region)


def is_s3(uri: str | os.PathLike[str]) -> bool:
    """Whether this address is an S3 one; raises StorageError for any other scheme than s3:// and file://."""
    text = os.fspath(uri)
    if "://" in text and not text.startswith(("s3://", "file://")):
        raise StorageError("address", text, "a local path, file:// or s3://bucket/key")
    return text.startswith("s3://")


def absolute(address: str) -> str:
    """An address that means the same in every process: local paths made absolute; "" stays so."""
    return address if not address or is_s3(address) else os.path.abspath(os.path.expanduser(address))


def join(uri: str | os.PathLike[str], *parts: str) -> str:
    """`uri` with path parts appended, for local and S3 addresses alike."""
    return "/".join([os.fspath(uri).rstrip("/"), *(part.strip("/") for part in parts if part)])


class Store(Protocol):
    """What files and folders need of a store. Paths are the store's own (a local path; bucket/key)."""

    def size(self, path: str) -> int: ...
    def read(self, path: str, start: int, end: int | None) -> bytes: ...
    def read_spans(self, path: str, spans: Sequence[Sequence[int]]) -> tuple[list[bytes], int]:
        """Some [start, end) of a file, and the file's size."""
        ...

    def stream(self, path: str) -> Iterator[bytes]: ...
    def write(self, path: str, data: bytes, *, only_new: bool = False) -> None: ...
    def upload(self, source: Path, path: str) -> None: ...
    def delete(self, path: str) -> None: ...
    def walk(self, path: str) -> dict[str, int]: ...
    def children(self, path: str) -> list[str]: ...


def store_for(uri: str | os.PathLike[str], options: StorageOptions | None = None) -> tuple[Store, str]:
    """The store that holds `uri`, and the path of `uri` in it."""
    text = os.fspath(uri)
    if not is_s3(text):
        return LocalStore(), os.path.expanduser(text.removeprefix("file://"))
    path = text.removeprefix("s3://").rstrip("/")
    if not path.split("/", 1)[0]:
        raise StorageError("address", text, "s3://bucket/key")
    from jala_ray.storage.s3 import S3Store  # boto3 only where it is needed

    return S3Store((options or StorageOptions()).resolved()), path


class LocalStore:
    """Files on this machine's disks. Writes appear whole, under their name, after fsync."""

    def size(self, path: str) -> int:
        if os.path.isdir(path):
            raise MissingFile("address", path, "a file", "This is a folder.")
        return os.stat(path).st_size

    def read(self, path: str, start: int, end: int | None) -> bytes:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(-1 if end is None else end - start)

    def read_spans(self, path: str, spans: Sequence[Sequence[int]]) -> tuple[list[bytes], int]:
        file = os.open(path, os.O_RDONLY)
        try:
            return [os.pread(file, end - start, start) for start, end in spans], os.fstat(file).st_size
        finally:
            os.close(file)

    def stream(self, path: str) -> Iterator[bytes]:
        with open(path, "rb") as file:
            while chunk := file.read(STREAM_CHUNK):
                yield chunk

    def write(self, path: str, data: bytes, *, only_new: bool = False) -> None:
        def fill(file) -> None:
            file.write(data)

        self._put(path, fill, only_new)

    def upload(self, source: Path, path: str) -> None:
        def fill(file) -> None:
            for chunk in self.stream(str(source)):
                file.write(chunk)

        self._put(path, fill, only_new=False)

    def _put(self, path: str, fill, only_new: bool) -> None:
        folder, name = os.path.split(os.path.abspath(path))
        os.makedirs(folder, exist_ok=True)
        partial = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with open(partial, "xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            if only_new:
                os.link(partial, path)  # Fails if the name exists: the local form of If-None-Match.
            else:
                os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)
        sync_folder(folder)

    def delete(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)

    def walk(self, path: str, faults: dict[str, str] | None = None) -> dict[str, int]:
        """Every file below a folder, linked folders included: relative name -> bytes, sorted.

        `faults` takes what is there and cannot be had (a link to nothing, a folder that may not be read): relative name, of a folder
        with a slash behind it -> why.
        """
        root, found, faults = Path(path), {}, {} if faults is None else faults

        def unreadable(error: OSError) -> None:
            if error.filename == str(root) and not isinstance(error, FileNotFoundError):
                raise error
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                faults[f"{os.path.relpath(error.filename, root)}/"] = f"a folder that can be read: {error.strerror}"

        # The real folders from the root to each: a link may lead back to one.
        above = {str(root): [os.path.realpath(root)]}
        for folder, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
            parents = above.pop(folder)
            for name in list(folders):
                real = os.path.realpath(os.path.join(folder, name))
                if real in parents:
                    folders.remove(name)
                else:
                    above[os.path.join(folder, name)] = [*parents, real]
            for name in files:
                file = Path(folder, name)
                relative = file.relative_to(root).as_posix()
                try:
                    status = file.stat()
                except OSError as error:
                    if file.is_symlink():
                        faults[relative] = f"a file: it is a link to {os.readlink(file)!r} ({error.strerror})"
                    continue  # It vanished.
                if stat.S_ISREG(status.st_mode):
                    found[relative] = status.st_size
        return dict(sorted(found.items()))

    def children(self, path: str) -> list[str]:
        return sorted(os.listdir(path))


def sync_folder(path: str) -> None:
    """Make new names in a local folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def explained(operation: str, uri: str | os.PathLike[str], options: StorageOptions | None = None):
    """Turn whatever the operating system or boto3 raises into a StorageError that names the operation, the
    place and a remedy.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        text = os.fspath(uri)
        diagnosis = _diagnosis(error)
        if diagnosis is None:
            raise
        place = text
        if text.startswith("s3://"):
            endpoint = (options or StorageOptions()).resolved().endpoint_url or "AWS"
            place = f"{text} (bucket {text[5:].split('/', 1)[0]!r}, endpoint {endpoint})"
        cause, remedy, missing = diagnosis
        kind = MissingFile if missing else StorageError
        raise kind(f"{operation} {place}", cause, "it to succeed", remedy) from error


def _diagnosis(error: Exception) -> tuple[str, str, bool] | None:
    """(cause, remedy, whether the thing is merely absent) of a storage problem; None for any other error."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"no such file or folder: {error.filename}", "Check the path.", True
    s3 = sys.modules.get("jala_ray.storage.s3")  # boto3's errors can only come from there
    if s3 is not None:
        return s3.diagnosis(error)
    return (f"{type(error).__name__}: {error}", "", False) if isinstance(error, OSError) else None
