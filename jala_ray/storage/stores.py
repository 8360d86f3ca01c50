"""Addresses, options, and the two stores (local disk, S3) behind one small contract."""

from __future__ import annotations

import contextlib
import os
import sys
import urllib.parse
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from jala_ray.types import JalaError, StorageError

MULTIPART_THRESHOLD = 5 * 1024 * 1024
"""Objects up to this many bytes go in one PUT; S3 allows no smaller part."""
STREAM_CHUNK = 1024 * 1024


class MissingFile(StorageError):
    """There is no file or object at this address."""


@dataclass(frozen=True)
class StorageOptions:
    """How `s3://` addresses are reached; local paths need none of it. Never holds a secret.

    What is left out comes from the environment, then from the AWS configuration files; `resolved` says what that is, and all
    three S3 clients are told so.
    """

    endpoint_url: str | None = None
    """S3-compatible server, e.g. http://store:9000; None: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile's, else AWS itself."""
    region: str | None = None
    """None: AWS_REGION, AWS_DEFAULT_REGION, the profile's. On AWS the bucket's own region is found by asking."""
    profile: str | None = None
    """Section of the AWS configuration files that credentials, endpoint and region come from; None: AWS_PROFILE, else `default`."""
    anonymous: bool = False
    """Ask without credentials, as public buckets allow; also AWS_SKIP_SIGNATURE=true or AWS_NO_SIGN_REQUEST=true."""
    ca_bundle: str | None = None
    """PEM file of the certificates that an https:// endpoint is trusted by; None: AWS_CA_BUNDLE, the profile's, else the public ones."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Where a request names the bucket: in its path, or in the host's name. auto: AWS_VIRTUAL_HOSTED_STYLE_REQUEST, the profile's
    `s3.addressing_style`, else virtual for buckets on AWS without a dot in their names, path for all others."""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0
    attempts: int = 4
    """Tries a request in all, the first included; pauses between them grow."""
    patience_s: float = 180.0
    """How long a store may fail to answer, seconds, before the work that needs it fails with `StoreUnavailable`."""

    def resolved(self) -> StorageOptions:
        """The same with what the environment and the AWS configuration files say in place of what is left out.

        Raises `StoreUnavailable` where they name a profile or a file that this machine does not have.
        """
        from jala_ray.storage.resolving import resolve  # botocore only where it is needed

        return resolve(self)


def is_s3(uri: str | os.PathLike[str]) -> bool:
    """Whether this address is an S3 one; raises StorageError for any other scheme than s3:// and file://."""
    text = os.fspath(uri)
    other_scheme = "://" in text and not text.startswith(("s3://", "file://"))
    if other_scheme or (text.startswith("s3:") and not text.startswith("s3://")):
        raise StorageError("address", text, "a local path, file:///folder/file or s3://bucket/key")
    return text.startswith("s3://")


def _written_out(address: str | os.PathLike[str]) -> str:
    """A local address as a path: `file:` URLs decoded, `~` replaced by the home folder. It may be relative still."""
    text = os.fspath(address)
    if is_s3(text):
        raise StorageError("address", text, "a local path or file:///folder/file")
    if text.startswith("file:/"):
        rest = text.removeprefix("file:")
        host, path = rest[2:].partition("/")[::2] if rest.startswith("//") else ("", rest[1:])
        if host not in ("", "localhost"):
            remedy = f"{host!r} stands where a host does; a path on this machine begins after three slashes."
            raise StorageError("address", text, "file:///folder/file, of this machine", remedy)
        return "/" + urllib.parse.unquote(path, errors="surrogateescape")
    path = os.path.expanduser(text)
    home = path.partition("/")[0]
    if home.startswith("~") and not os.path.lexists(home):
        raise StorageError("address", text, f"a user whose home folder {home} is known", "Write the folder out.")
    return path


def is_relative(address: str) -> bool:
    """Whether an address depends on the folder that a process runs in. Raises as `absolute`."""
    return bool(address) and not is_s3(address) and not os.path.isabs(_written_out(address))


def local_path(address: str | os.PathLike[str]) -> str:
    """The absolute path of a local address, however it is written. Raises StorageError for an s3:// address, and as `absolute`."""
    return os.path.abspath(_written_out(address))


def absolute(address: str | os.PathLike[str]) -> str:
    """An address that means the same in every process: local ones as absolute paths, `s3://` ones without a slash at their end.

    All addresses that enter a command go through here. "" stays so. Raises StorageError for schemes that are not served, a
    `file://` URL of another host, a bucket without a name and an unknown user's `~`.
    """
    text = os.fspath(address)
    if not text or not is_s3(text):
        return text and local_path(text)
    bucket, slash, key = text.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError("address", text, "s3://bucket/key")
    return f"s3://{bucket}{slash}{key}".rstrip("/")


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
        return LocalStore(), local_path(text)
    path = absolute(text).removeprefix("s3://")
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

    def walk(self, path: str) -> dict[str, int]:
        root = Path(path)
        return {p.relative_to(root).as_posix(): p.stat().st_size for p in sorted(root.rglob("*")) if p.is_file()}

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
    except JalaError:
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
