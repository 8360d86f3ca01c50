"""Addresses, options, and the two stores (local disk, S3) behind one small contract."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec, Protocol, TypeVar

from jala_ray.storage.diagnosis import diagnose
from jala_ray.storage.patience import GaveUp, Patience, patiently
from jala_ray.storage.walking import walk_folder
from jala_ray.types import JalaError, StorageError, StoreUnavailable

P = ParamSpec("P")
R = TypeVar("R")

MULTIPART_THRESHOLD = 5 * 1024 * 1024
"""Objects up to this many bytes go in one PUT; S3 allows no smaller part."""
STREAM_CHUNK = 1024 * 1024
FIRST_FILES = 1000
"""As many as S3 lists in a request."""


class MissingFile(StorageError):
    """There is no file or object at this address."""


class ChangedFile(StorageError):
    """A file has another size than when it was indexed, or was replaced while it was read."""


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
    """Seconds until a connection stands."""
    read_timeout_s: float = 60.0
    """Seconds without a byte of an answer."""
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
        """Some [start, end) of a file, and the file's size, all of one version of it."""
        ...

    def stream(self, path: str) -> Iterator[bytes]: ...
    def write(self, path: str, data: bytes, *, only_new: bool = False) -> None: ...
    def upload(self, source: Path, path: str) -> None: ...
    def put(self, path: str, data: memoryview) -> None:
        """As `write`, of as many bytes as a file may have."""
        ...

    def delete(self, path: str) -> None: ...
    def walk(self, path: str) -> dict[str, int]: ...
    def children(self, path: str) -> list[str]: ...
    def first_files(self, path: str) -> dict[str, int]:
        """Some files below a folder, relative name -> bytes: no more than one request lists. `""`: the path is itself a file."""
        ...

    def sweep(self, path: str) -> dict[str, int]:
        """Remove what dead writers left below a folder: name -> bytes."""
        ...


def store_for(uri: str | os.PathLike[str], options: StorageOptions | None = None) -> tuple[Store, str]:
    """The store that holds `uri`, and the path of `uri` in it."""
    text = os.fspath(uri)
    if not is_s3(text):
        return LocalStore((options or StorageOptions()).patience_s), local_path(text)
    path = absolute(text).removeprefix("s3://")
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
                        patience.answered()
                        yield chunk
                patience.answered()
                return
            except OSError as error:
                if not patience.again(error):
                    raise

    def write(self, path: str, data: bytes, *, only_new: bool = False) -> None:
        self._put(path, lambda: (data,), only_new)

    def upload(self, source: Path, path: str) -> None:
        self._put(path, lambda: self.stream(str(source)), only_new=False)

    def put(self, path: str, data: memoryview) -> None:
        pieces = range(0, len(data), STREAM_CHUNK)
        self._put(path, lambda: (data[at : at + STREAM_CHUNK] for at in pieces), only_new=False)

    def _put(self, path: str, chunks: Callable[[], Iterable[bytes | memoryview]], only_new: bool) -> None:
        """In steps, each of which is tried again by itself: the file stays the same one, by which a later try knows it as its own."""
        path = os.path.abspath(path)
        folder, name = os.path.split(path)
        partial = os.path.join(folder, partial_name(name))
        try:
            own = self._fill(partial, chunks)
            self._name(partial, path, own, only_new)
            self.delete(partial)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
        self._sync(folder)

    def _fill(self, partial: str, chunks: Callable[[], Iterable[bytes | memoryview]]) -> os.stat_result:
        patience = Patience(DISKS, self.patience_s)
        while True:
            try:
                os.makedirs(os.path.dirname(partial), exist_ok=True)
                with open(partial, "wb") as file:
                    for chunk in chunks():
                        file.write(chunk)
                        if patience.first is None:  # Only so: a file that never lasts must not be written for ever.
                            patience.answered()
                    file.flush()
                    os.fsync(file.fileno())
                    own = os.fstat(file.fileno())
            except OSError as error:
                if not patience.again(error):
                    raise
            else:
                patience.answered()
                return own

    @_patient
    def _name(self, partial: str, path: str, own: os.stat_result, only_new: bool) -> None:
        try:
            if only_new:
                os.link(partial, path)  # Fails if the name exists: the local form of If-None-Match.
            else:
                os.replace(partial, path)
        except (FileExistsError, FileNotFoundError):  # A network mount may have done it, and answered late.
            if not (os.path.exists(path) and os.path.samestat(os.stat(path), own)):
                raise

    @_patient
    def _sync(self, folder: str) -> None:
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
    def first_files(self, path: str) -> dict[str, int]:
        if not os.path.isdir(path):
            return {"": os.stat(path).st_size}
        files = (p for p in Path(path).rglob("*") if p.is_file())
        return {p.relative_to(path).as_posix(): p.stat().st_size for p in itertools.islice(files, FIRST_FILES)}

    def sweep(self, path: str) -> dict[str, int]:
        root, found = Path(path), {}
        for folder, folders, files in os.walk(root):
            for name in filter(PARTIAL.fullmatch, [*folders, *files]):
                partial = Path(folder, name)
                with contextlib.suppress(
                    FileNotFoundError
                ):  # A live writer gave it its name, or another sweep was faster.
                    size = sum(self.walk(str(partial)).values()) or partial.stat().st_size
                    if partial.is_dir() and not partial.is_symlink():
                        shutil.rmtree(partial, ignore_errors=True)  # A live writer may add to it meanwhile.
                    else:
                        partial.unlink()
                    if not os.path.lexists(partial):
                        found[partial.relative_to(root).as_posix()] = size
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
        found = diagnose(first, "" if is_s3(text) else local_path(text))
        if found is None:
            raise
        options, place = options or StorageOptions(), text
        if is_s3(text):
            options = options.resolved()
            place = f"{text} (bucket {text[5:].split('/', 1)[0]!r}, endpoint {options.endpoint_url or 'AWS'})"
        field, expected = f"{operation} {place}", "it to succeed"
        if isinstance(error, GaveUp):
            expected = f"an answer within {options.patience_s:g} s (tries: {error.tries}, in {error.seconds:.0f} s)"
        if found.kind in ("passing", "closed"):
            raise StoreUnavailable(field, found.cause, expected, found.remedy) from first
        kind = MissingFile if found.kind == "missing" else StorageError
        raise kind(field, found.cause, expected, found.remedy) from first
