"""Addresses, options, and the two stores (local disk, S3) behind one small contract."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from jala_ray.storage.diagnosis import diagnose
from jala_ray.storage.patience import GaveUp, Patience, patiently
from jala_ray.storage.walking import walk_folder
from jala_ray.types import JalaError, StorageError, StoreUnavailable

P = ParamSpec("P")
R = TypeVar("R")

MULTIPART_THRESHOLD = 5 * 1024 * 1024
"""Objects up to this many bytes go in one PUT; S3 allows no smaller part."""
STREAM_CHUNK = 1024 * 1024


class MissingFile(StorageError):
    """There is no file or object at this address."""


class ChangedFile(StorageError):
    """A file has another size than when it was indexed, or was replaced while it was read."""


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
        """Some [start, end) of a file, and the file's size, all of one version of it."""
        ...

    def stream(self, path: str) -> Iterator[bytes]: ...
    def write(self, path: str, data: bytes, *, only_new: bool = False) -> None: ...
    def upload(self, source: Path, path: str) -> None: ...
    def delete(self, path: str) -> None: ...
    def walk(self, path: str) -> dict[str, int]: ...
    def children(self, path: str) -> list[str]: ...
    def sweep(self, path: str) -> dict[str, int]:
        """Remove what dead writers left below a folder: name -> bytes."""
        ...


def store_for(uri: str | os.PathLike[str], options: StorageOptions | None = None) -> tuple[Store, str]:
    """The store that holds `uri`, and the path of `uri` in it."""
    text = os.fspath(uri)
    if not is_s3(text):
        return LocalStore((options or StorageOptions()).patience_s), os.path.expanduser(text.removeprefix("file://"))
    path = text.removeprefix("s3://").rstrip("/")
    if not path.split("/", 1)[0]:
        raise StorageError("address", text, "s3://bucket/key")
    from jala_ray.storage.s3 import S3Store  # boto3 only where it is needed

    return S3Store((options or StorageOptions()).resolved()), path


DISKS = "of this machine's files"


def _patient(method: Callable[Concatenate[LocalStore, P], R]) -> Callable[Concatenate[LocalStore, P], R]:
    """A method that is tried again while a network mount does not answer."""

    @functools.wraps(method)
    def tried(self: LocalStore, *args: P.args, **kwargs: P.kwargs) -> R:
        return patiently(lambda: method(self, *args, **kwargs), DISKS, self.patience_s)

    return tried


class LocalStore:
    """Files on this machine's disks. Writes appear whole, under their name, after fsync."""

    def __init__(self, patience_s: float = StorageOptions.patience_s) -> None:
        self.patience_s = patience_s

    @_patient
    def size(self, path: str) -> int:
        if os.path.isdir(path):
            raise MissingFile("address", path, "a file", "This is a folder.")
        return os.stat(path).st_size

    @_patient
    def read(self, path: str, start: int, end: int | None) -> bytes:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(-1 if end is None else end - start)

    @_patient
    def read_spans(self, path: str, spans: Sequence[Sequence[int]]) -> tuple[list[bytes], int]:
        file = os.open(path, os.O_RDONLY)
        try:
            return [os.pread(file, end - start, start) for start, end in spans], os.fstat(file).st_size
        finally:
            os.close(file)

    def stream(self, path: str) -> Iterator[bytes]:
        patience, position = Patience(DISKS, self.patience_s), 0
        while True:
            try:
                with open(path, "rb") as file:
                    file.seek(position)
                    while chunk := file.read(STREAM_CHUNK):
                        position += len(chunk)
                        yield chunk
                return
            except OSError as error:
                if not patience.again(error):
                    raise

    def write(self, path: str, data: bytes, *, only_new: bool = False) -> None:
        def fill(file) -> None:
            file.write(data)

        self._put(path, fill, only_new)

    def upload(self, source: Path, path: str) -> None:
        def fill(file) -> None:
            for chunk in self.stream(str(source)):
                file.write(chunk)

        self._put(path, fill, only_new=False)

    @_patient
    def _put(self, path: str, fill, only_new: bool) -> None:
        folder, name = os.path.split(os.path.abspath(path))
        os.makedirs(folder, exist_ok=True)
        partial = os.path.join(folder, partial_name(name))
        try:
            with open(partial, "xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            if only_new:
                try:
                    os.link(partial, path)  # Fails if the name exists: the local form of If-None-Match.
                except FileExistsError:
                    if not os.path.samefile(partial, path):  # A network mount may answer late, to its own retry.
                        raise
            else:
                os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)
        sync_folder(folder)

    @_patient
    def delete(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)

    @_patient
    def walk(self, path: str, faults: dict[str, str] | None = None) -> dict[str, int]:
        return walk_folder(Path(path), faults)

    @_patient
    def children(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    @_patient
    def sweep(self, path: str) -> dict[str, int]:
        root, found = Path(path), {}
        for folder, folders, files in os.walk(root):
            for name in filter(PARTIAL.fullmatch, [*folders, *files]):
                partial = Path(folder, name)
                found[partial.relative_to(root).as_posix()] = (
                    sum(self.walk(str(partial)).values()) or partial.stat().st_size
                )
                shutil.rmtree(partial) if partial.is_dir() and not partial.is_symlink() else partial.unlink()
            folders[:] = [name for name in folders if not PARTIAL.fullmatch(name)]
        return found


PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.part")


def partial_name(name: str) -> str:
    """Name under which a file or folder is written before it gets its own."""
    return f".{name}.{uuid.uuid4().hex[:8]}.part"


def sync_folder(path: str) -> None:
    """Make new names in a local folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def explained(operation: str, uri: str | os.PathLike[str], options: StorageOptions | None = None):
    """Turn whatever the operating system or a client of a store raises into an error that names the operation, the place and a remedy:
    StoreUnavailable if it says nothing about the file, else StorageError, MissingFile among them.
    """
    try:
        yield
    except JalaError:
        raise
    except Exception as error:
        text = os.fspath(uri)
        first = error.first if isinstance(error, GaveUp) else error
        found = diagnose(first, "" if is_s3(text) else text)
        if found is None:
            raise
        options = (options or StorageOptions()).resolved()
        place = text
        if is_s3(text):
            place = f"{text} (bucket {text[5:].split('/', 1)[0]!r}, endpoint {options.endpoint_url or 'AWS'})"
        field, expected = f"{operation} {place}", "it to succeed"
        if found.kind == "passing":
            if isinstance(error, GaveUp):
                expected = f"an answer within {options.patience_s:g} s ({error.tries} tries in {error.seconds:.0f} s)"
            raise StoreUnavailable(field, found.cause, expected, found.remedy) from first
        kind = MissingFile if found.kind == "missing" else StorageError
        raise kind(field, found.cause, expected, found.remedy) from first
