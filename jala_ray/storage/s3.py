"""Objects of S3 and S3-compatible servers, by boto3 and, for ranged reads, obstore. Imported only where an address is s3://."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import botocore.exceptions as aws
import obstore
import obstore.exceptions
from botocore.exceptions import IncompleteReadError

from jala_ray.storage.clients import forget_clients, obstore_takes, range_store, s3_client
from jala_ray.storage.diagnosis import Diagnosis
from jala_ray.storage.multipart import ObjectWriter, upload_file, upload_parts
from jala_ray.storage.patience import Patience, patiently
from jala_ray.storage.s3_errors import diagnose, no_upload
from jala_ray.storage.stores import MULTIPART_THRESHOLD, PARTIAL, STREAM_CHUNK, ChangedFile, StorageOptions
from jala_ray.types import StorageError

if TYPE_CHECKING:
    from obstore import GetOptions

R = TypeVar("R")

RANGE_BYTES = 16 * 1024 * 1024
"""Longer ranges are asked for in pieces: a request has to end within `read_timeout_s`."""
_NO_RANGES = "The store does not serve ranges of objects, which are needed to go on where a body broke off."


class S3Store:
    """Objects of an S3 or S3-compatible server. Every request is tried again within `options.patience_s` (see `patience`)."""

    def __init__(self, options: StorageOptions) -> None:
        self.options = options
        self.endpoint = options.endpoint_url or "AWS"

    @property
    def client(self) -> Any:
        return s3_client(self.options, os.getpid())

    def ask(self, request: Callable[[], R]) -> R:
        """Make a request until it is answered. Raises GaveUp, and what the answer says."""
        return patiently(request, self.endpoint, self.options.patience_s, _with_new_credentials)

    def size(self, path: str) -> int:
        return self.identity(path)[0]

    def identity(self, path: str) -> tuple[int, str]:
        """Bytes of an object, and the tag of its version."""
        key = _key(path)

        def look() -> tuple[int, str]:
            try:
                found = self.client.head_object(**key)
                return found["ContentLength"], found["ETag"]
            except aws.ClientError as error:
                if (said := diagnose(error)) is not None and said.kind == "passing":
                    raise
            # A HEAD is refused without a word; the same by GET says why (the bucket is missing, the credentials are old).
            found = self.client.get_object(**key, Range="bytes=0-0")
            found["Body"].close()
            return int(found["ContentRange"].rpartition("/")[2]), found["ETag"]

        return self.ask(look)

    def read(self, path: str, start: int, end: int | None) -> bytes:
        if end is None:
            return b"".join(self.stream(path, start))
        return self.read_spans(path, [(start, end)])[0][0]

    def read_spans(self, path: str, spans: Sequence[Sequence[int]], version: str = "") -> tuple[list[bytes], int]:
        """By obstore: a ranged GET costs boto3 2 ms of processor time and obstore a quarter of that, and samples are read so."""
        size, one = 0, functools.partial(self._by_obstore if obstore_takes(path) else self._by_boto3, path)

        def get(start: int, end: int) -> bytes:
            nonlocal size, version
            data, size, version = one(start, end, version)
            if len(data) != min(end, size) - start:
                raise IncompleteReadError(actual_bytes=len(data), expected_bytes=min(end, size) - start)
            return data

        def read(start: int, end: int) -> bytes:
            pieces = [b""]
            while start < end and (not size or start < size):
                until = min(end, start + RANGE_BYTES)
                pieces.append(self.ask(functools.partial(get, start, until)))
                start = until
            return b"".join(pieces)

        with _same_version(path):
            return [read(start, end) for start, end in spans], size

    def _by_obstore(self, path: str, start: int, end: int, version: str) -> tuple[bytes, int, str]:
        """Bytes of the object, its size and version."""
        bucket, key = _key(path).values()
        options: GetOptions = {"range": (start, end)}
        if version:
            options["if_match"] = version
        found = obstore.get(range_store(self.options, bucket, os.getpid()), key, options=options)
        return bytes(found.bytes()), found.meta["size"], found.meta.get("e_tag") or ""

    def _by_boto3(self, path: str, start: int, end: int, version: str) -> tuple[bytes, int, str]:
        """The same, for keys that obstore has no words for."""
        condition = {"IfMatch": version} if version else {}
        found = self.client.get_object(**_key(path), Range=f"bytes={start}-{end - 1}", **condition)
        if "ContentRange" not in found:
            raise StorageError(f"read s3://{path}", "a whole object", f"its bytes from {start} on", _NO_RANGES)
        return found["Body"].read(), int(found["ContentRange"].rpartition("/")[2]), found["ETag"]

    def stream(self, path: str, start: int = 0) -> Iterator[bytes]:
        """The object from byte `start` on. Where its body breaks off, the rest is asked for, of the same version."""
        patience = Patience(self.endpoint, self.options.patience_s, _with_new_credentials)
        position, end, version = start, None, ""
        while end is None or position < end:
            asked = {"Range": f"bytes={position}-"} if position else {}
            try:
                with _same_version(path):
                    found = self.client.get_object(**_key(path), **asked, **({"IfMatch": version} if version else {}))
                served = found.get("ContentRange", "a whole object")
                if position and not served.startswith(f"bytes {position}-"):
                    raise StorageError(f"read s3://{path}", served, f"its bytes from {position} on", _NO_RANGES)
                end, version = position + found["ContentLength"], found["ETag"]
                while chunk := found["Body"].read(STREAM_CHUNK):
                    position += len(chunk)
                    patience.answered()
                    yield chunk
                if position < end:
                    raise IncompleteReadError(actual_bytes=position, expected_bytes=end)
            except Exception as error:
                if not patience.again(error):
                    raise
        patience.answered()

    def write(self, path: str, data: bytes, *, only_new: bool = False) -> None:
        key, tries = _key(path), 0
        condition = {"IfNoneMatch": "*"} if only_new else {}

        def put() -> None:
            nonlocal tries
            tries += 1
            try:
                self.client.put_object(**key, Body=data, **condition)
            except aws.ClientError as error:
                # An earlier try may have been carried out and its answer lost: then what is there is our own.
                refused = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 412
                if not (refused and tries > 1 and self._holds(key, data)):
                    raise

        self.ask(put)

    def _holds(self, key: dict[str, str], data: bytes) -> bool:
        try:
            return self.client.get_object(**key)["Body"].read() == data
        except self.client.exceptions.NoSuchKey:
            return False

    def upload(self, source: Path, path: str) -> None:
        if source.stat().st_size <= MULTIPART_THRESHOLD:
            self.write(path, source.read_bytes())
        else:
            upload_file(self, source, _key(path))

    def put(self, path: str, data: memoryview) -> None:
        if len(data) <= MULTIPART_THRESHOLD:
            self.write(path, bytes(data))
        else:
            upload_parts(self, len(data), lambda start, end: bytes(data[start:end]), _key(path))

    def writer(self, path: str) -> ObjectWriter:
        """A file that becomes the object when it is closed."""
        return ObjectWriter(self, path, _key(path))

    def copy(self, source: str, path: str) -> None:
        self.ask(lambda: self.client.copy_object(**_key(path), CopySource=_key(source)))

    def delete(self, path: str) -> None:
        self.ask(lambda: self.client.delete_object(**_key(path)))

    def walk(self, path: str) -> dict[str, int]:
        prefix, pages = self._list(path)
        found = {o["Key"][len(prefix) :]: o["Size"] for page in pages for o in page.get("Contents", ())}
        return {name: size for name, size in sorted(found.items()) if name and not name.endswith("/")}

    def children(self, path: str) -> list[str]:
        files, folders = self.entries(path)
        return sorted({*files, *folders} - {""})

    def entries(self, path: str) -> tuple[dict[str, int], list[str]]:
        """Directly in a folder: files, name -> bytes, and the names of folders."""
        prefix, pages = self._list(path, Delimiter="/")
        files: dict[str, int] = {}
        folders: list[str] = []
        for page in pages:
            files |= {o["Key"][len(prefix) :]: o["Size"] for o in page.get("Contents", ()) if o["Key"] != prefix}
            folders += [o["Prefix"][len(prefix) : -1] for o in page.get("CommonPrefixes", ())]
        return files, folders

    def is_folder(self, path: str) -> bool:
        """Whether any key lies below a path."""
        prefix, pages = self._list(path, MaxKeys=2)  # One may be the folder's own.
        return any(o["Key"] != prefix for o in next(pages).get("Contents", ()))

    def first_files(self, path: str) -> dict[str, int]:
        prefix, pages = self._list(path)
        found = {o["Key"][len(prefix) :]: o["Size"] for o in next(pages).get("Contents", ())}
        return found or {"": self.size(path)}

    def _list(self, path: str, **how: Any) -> tuple[str, Iterator[dict[str, Any]]]:
        """The prefix that a folder's keys begin with, and the pages of its list."""
        bucket, _, prefix = path.partition("/")
        prefix = prefix and prefix + "/"
        return prefix, self._pages("list_objects_v2", ("ContinuationToken",), Bucket=bucket, Prefix=prefix, **how)

    def _pages(self, operation: str, tokens: Sequence[str], **asked: Any) -> Iterator[dict[str, Any]]:
        """Pages of a list, each a request of its own; the tokens of the next page come as `NextTOKEN`."""

        def fetch(asked: dict[str, Any]) -> dict[str, Any]:
            return getattr(self.client, operation)(**asked)

        while True:
            page = self.ask(functools.partial(fetch, asked))
            yield page
            if not page.get("IsTruncated"):
                return
            asked = asked | {token: page[f"Next{token}"] for token in tokens}

    def sweep(self, path: str) -> dict[str, int]:
        bucket, _, prefix = path.partition("/")
        found: dict[str, int] = {}
        listed = self._pages(
            "list_multipart_uploads", ("KeyMarker", "UploadIdMarker"), Bucket=bucket, Prefix=prefix + "/"
        )
        for upload in [upload for page in listed for upload in page.get("Uploads", ())]:
            place = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            try:
                parts = self._pages("list_parts", ("PartNumberMarker",), **place)
                size = sum(part["Size"] for page in parts for part in page.get("Parts", ()))
                self._abort(place)
            except aws.ClientError as error:
                if not no_upload(error):
                    raise
                continue  # Its writer, or another sweep, ended it.
            name = upload["Key"][len(prefix) + 1 :]
            found[name] = found.get(name, 0) + size
        for folder in filter(PARTIAL.fullmatch, self.children(path)):
            for name, size in self.walk(f"{path}/{folder}").items():
                self.delete(f"{path}/{folder}/{name}")
                found[f"{folder}/{name}"] = size
        return found

    def _abort(self, place: dict[str, str]) -> None:
        """End an unfinished upload. Raises `ClientError` where another ended it (`no_upload`)."""
        tries = 0

        def abort() -> None:
            nonlocal tries
            tries += 1
            try:
                self.client.abort_multipart_upload(**place)
            except aws.ClientError as error:
                if tries == 1 or not no_upload(error):  # Else an earlier try was carried out and its answer lost.
                    raise

        self.ask(abort)


def _with_new_credentials(found: Diagnosis) -> None:
    """Let the next try ask for credentials anew where the store wants others: clients keep those of files and variables for good."""
    if found.credentials:
        forget_clients()


@contextlib.contextmanager
def _same_version(path: str):
    """Turn a refusal of the version asked for into ChangedFile."""
    try:
        yield
    except (aws.ClientError, obstore.exceptions.PreconditionError) as error:
        found = diagnose(error)
        if found is None or not found.cause.startswith("PreconditionFailed"):
            raise
        raise ChangedFile(
            f"read s3://{path}", "another object", "the one whose reading began", "It was replaced meanwhile."
        ) from error


def _key(path: str) -> dict[str, str]:
    bucket, _, key = path.partition("/")
    if not key:
        raise StorageError("address", f"s3://{path}", "s3://bucket/key", "The key is missing.")
    return {"Bucket": bucket, "Key": key}
