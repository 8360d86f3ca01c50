"""Objects written in parts: each part is tried again by itself, and nothing is left of an upload that fails."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.exceptions as aws

from jala_ray.storage.patience import parallel
from jala_ray.storage.s3_errors import diagnose, no_upload
from jala_ray.storage.stores import explained

if TYPE_CHECKING:
    from jala_ray.storage.s3 import S3Store

PART_BYTES = 8 * 1024 * 1024
STREAM_PART_BYTES = 16 * 1024 * 1024
"""Of an object whose size is not known before: S3 takes 10,000 parts."""
MOST_PARTS = 1000
WORKERS = 4


class Multipart:
    """An unfinished multipart upload. As a context it is aborted where the body raises."""

    def __init__(self, store: S3Store, place: dict[str, str]) -> None:
        self.store, self.place = store, place
        self.id: str = store.ask(lambda: store.client.create_multipart_upload(**place))["UploadId"]
        self.tags: dict[int, str] = {}

    def __enter__(self) -> Multipart:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.abort(error)

    def send(self, number: int, data: bytes) -> None:
        """Part `number`, from 1 on; all but the last have `MULTIPART_THRESHOLD` bytes or more."""
        asked: dict[str, Any] = {**self.place, "UploadId": self.id, "PartNumber": number}
        self.tags[number] = self.store.ask(lambda: self.store.client.upload_part(**asked, Body=data))["ETag"]

    def finish(self) -> None:
        """The object appears."""
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in sorted(self.tags.items())]
        asked: dict[str, Any] = {**self.place, "UploadId": self.id, "MultipartUpload": {"Parts": parts}}
        try:
            self.store.ask(lambda: self.store.client.complete_multipart_upload(**asked))
        except aws.ClientError as error:
            # The answer of an earlier try may have been lost: then the upload is no more, and the object is there.
            if not no_upload(error) or not self._is_there():
                raise

    def _is_there(self) -> bool:
        """Whether there is an object that is what these parts make: its tag is a digest of theirs, if the store makes it as S3 does."""
        try:
            digests = b"".join(bytes.fromhex(tag.strip('"')) for _, tag in sorted(self.tags.items()))
        except ValueError:
            return False
        try:
            found = self.store.ask(lambda: self.store.client.head_object(**self.place))["ETag"]
        except aws.ClientError as error:
            if (said := diagnose(error)) is None or said.kind != "missing":
                raise
            return False
        return found.strip('"') == f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(self.tags)}"

    def abort(self, error: BaseException) -> None:
        """Tried once: where the store is gone, what is left is found by the next `sweep`."""
        try:
            self.store.client.abort_multipart_upload(**self.place, UploadId=self.id)
        except Exception as problem:
            error.add_note(f"an unfinished upload of {self.place['Key']} is left: {problem}")


def upload_file(store: S3Store, source: Path, place: dict[str, str]) -> None:
    """A file of more than `MULTIPART_THRESHOLD` bytes, some parts at a time."""
    with open(source, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        upload_parts(store, size, lambda start, end: os.pread(file.fileno(), end - start, start), place)


def upload_parts(store: S3Store, size: int, read: Callable[[int, int], bytes], place: dict[str, str]) -> None:
    """The same of `size` bytes that `read(start, end)` gives."""
    part = max(PART_BYTES, -(-size // MOST_PARTS))
    with Multipart(store, place) as upload:

        def send(number: int) -> None:
            upload.send(number, read((number - 1) * part, min(number * part, size)))

        parallel(send, range(1, -(-size // part) + 1), WORKERS)
        upload.finish()


class ObjectWriter(io.RawIOBase):
    """A binary file that becomes an object when it is closed: in one PUT if it is small, else in parts sent on the way.

    Used as a context it becomes nothing if the body raises. Raises StorageError, StoreUnavailable.
    """

    def __init__(self, store: S3Store, path: str, place: dict[str, str]) -> None:
        super().__init__()
        self._store, self._path, self._place = store, path, place
        self._buffer = bytearray()
        self._upload: Multipart | None = None
        self._sent = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._sent + len(self._buffer)

    def write(self, data: Any) -> int:
        self._buffer += data
        with self._explained():
            while len(self._buffer) > STREAM_PART_BYTES:
                self._upload = self._upload or Multipart(self._store, self._place)
                self._upload.send(len(self._upload.tags) + 1, bytes(self._buffer[:STREAM_PART_BYTES]))
                del self._buffer[:STREAM_PART_BYTES]
                self._sent += STREAM_PART_BYTES
        return memoryview(data).nbytes

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        with self._explained():
            if self._upload is None:
                self._store.write(self._path, bytes(self._buffer))
                return
            with self._upload as upload:
                upload.send(len(upload.tags) + 1, bytes(self._buffer))
                upload.finish()

    def _explained(self) -> AbstractContextManager[None]:
        return explained("write", f"s3://{self._path}", self._store.options)

    def discard(self, error: BaseException) -> None:
        """Close it so that nothing appears."""
        super().close()
        if self._upload is not None:
            self._upload.abort(error)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
        else:
            self.discard(error)

    def __del__(self) -> None:
        """A file that nobody closed was not written to its end: nothing appears (io's own would close it)."""
        if self._upload is not None and not self.closed:
            self._upload.abort(RuntimeError())
