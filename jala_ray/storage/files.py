"""Single files: read, read a range, write, list, open."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, cast

from jala_ray.storage.stores import ChangedFile, MissingFile, StorageOptions, explained, is_s3, store_for
from jala_ray.types import StorageError

if TYPE_CHECKING:
    from jala_ray.storage.s3 import S3Store

Uri = str | os.PathLike[str]
S3_GAP_BYTES = 512 * 1024
"""Ranges of an object nearer to one another than this come in one GET: a request costs more than its bytes in between."""


def read_bytes(uri: Uri, options: StorageOptions | None = None) -> bytes:
    """The whole file. Raises MissingFile, StorageError."""
    with explained("read", uri, options):
        store, path = store_for(uri, options)
        return store.read(path, 0, None)


def read_range(uri: Uri, start: int, end: int, options: StorageOptions | None = None) -> bytes:
    """Bytes [start, end) of the file, in one request. Raises MissingFile, and StorageError if the file ends
    before `end`.
    """
    if not 0 <= start <= end:
        raise StorageError("byte range", (start, end), "0 <= start <= end")
    with explained("read", uri, options):
        store, path = store_for(uri, options)
        data = store.read(path, start, end)
    if len(data) != end - start:
        raise StorageError(
            f"read {uri}", f"{len(data)} bytes at {start}", f"{end - start} bytes", "The file is shorter."
        )
    return data


def read_ranges(
    uri: Uri,
    ranges: Sequence[tuple[int, int]],
    options: StorageOptions | None = None,
    *,
    expected_size: int | None = None,
) -> list[bytes]:
    """Several byte ranges [start, end) of one file, ascending. Ranges that lie near one another come in one request.

    Raises MissingFile, StorageError if the file ends before a range, ChangedFile if its size is not `expected_size`.
    """
    gap = S3_GAP_BYTES if is_s3(uri) else 0
    spans: list[list[int]] = []
    for start, end in ranges:
        if spans and 0 <= start - spans[-1][1] <= gap:
            spans[-1][1] = end
        else:
            spans.append([start, end])
    with explained("read", uri, options):
        store, path = store_for(uri, options)
        parts, size = store.read_spans(path, spans)
    if expected_size is not None and size != expected_size:
        raise ChangedFile(f"size of {uri}", size, f"{expected_size} bytes", "It changed after it was indexed.")
    for (start, end), part in zip(spans, parts, strict=True):
        if len(part) != end - start:
            raise StorageError(
                f"read {uri}", f"{len(part)} bytes at {start}", f"{end - start} bytes", "The file is shorter."
            )
    found, which = [], 0
    for start, end in ranges:
        while not spans[which][0] <= start <= end <= spans[which][1]:
            which += 1
        found.append(parts[which][start - spans[which][0] : end - spans[which][0]])
    return found


def write_bytes(uri: Uri, data: bytes, options: StorageOptions | None = None, *, only_new: bool = False) -> None:
    """Write a whole file at once, making local folders as needed; a reader never sees half of it.

    With `only_new` the write fails (StorageError) if the address is taken, atomically: of two writers one
    succeeds.
    """
    with explained("write", uri, options):
        store, path = store_for(uri, options)
        store.write(path, data, only_new=only_new)


def delete(uri: Uri, options: StorageOptions | None = None) -> None:
    """Delete one file; nothing happens if it is not there."""
    with explained("delete", uri, options):
        store, path = store_for(uri, options)
        store.delete(path)


def size(uri: Uri, options: StorageOptions | None = None) -> int:
    """Bytes in the file. Raises MissingFile, StorageError."""
    with explained("look at", uri, options):
        store, path = store_for(uri, options)
        return store.size(path)


def exists(uri: Uri, options: StorageOptions | None = None) -> bool:
    """Whether there is a file (not a folder) at this address."""
    try:
        size(uri, options)
    except MissingFile:
        return False
    return True


def list_dir(uri: Uri, options: StorageOptions | None = None) -> list[str]:
    """Sorted names of the files and folders directly in a folder. Raises MissingFile if there is nothing
    there.
    """
    with explained("list", uri, options):
        store, path = store_for(uri, options)
        names = store.children(path)
    if not names and is_s3(uri):
        raise MissingFile(f"list {uri}", "no object under this prefix", "a folder", "Check the bucket and the prefix.")
    return names


def list_files(uri: Uri, options: StorageOptions | None = None) -> dict[str, int]:
    """All files below a folder: relative name -> bytes. Empty if there is nothing."""
    with explained("list", uri, options):
        store, path = store_for(uri, options)
        return store.walk(path)


def open_file(uri: Uri, mode: str = "rb", options: StorageOptions | None = None) -> IO[bytes]:
    """Open a file for reading ("rb") or writing ("wb").

    Remote reads are seekable and fetch only the blocks touched (`RangeFile`). Remote writes stream in parts
    and appear when closed; write what must be whole with `write_bytes` or `upload_dir` instead.
    """
    if mode not in ("rb", "wb"):
        raise StorageError("mode", mode, "rb or wb")
    with explained("open", uri, options):
        store, path = store_for(uri, options)
        if not is_s3(uri):
            if "w" in mode:
                os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            return open(path, mode)
        s3 = cast("S3Store", store)
        return cast("IO[bytes]", s3.writer(path) if "w" in mode else _ranges_of(s3, path, uri, options))


def _ranges_of(store: S3Store, path: str, uri: Uri, options: StorageOptions | None) -> RangeFile:
    """An object as a file, all of one version of it."""
    size, version = store.identity(path)

    def fetch(start: int, end: int) -> bytes:
        with explained("read", uri, options):
            return store.read_spans(path, [(start, end)], version)[0][0]

    return RangeFile(fetch, size)


class RangeFile(io.RawIOBase):
    """A read-only, seekable file over a function that fetches byte ranges.

    Small reads are served from aligned blocks, the last few of which are kept, so that a demuxer's hops
    between index and samples cost one request a block; a read longer than a block goes out as one request of
    its own.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], bytes],
        size: int,
        *,
        block_bytes: int = 256 * 1024,
        blocks_kept: int = 16,
    ) -> None:
        super().__init__()
        self._fetch, self.size = fetch, size
        self._block_bytes, self._blocks_kept = block_bytes, blocks_kept
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._position = 0
        self.bytes_fetched = 0
        """Bytes asked of the store so far."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, n: int | None = -1) -> bytes:
        start = self._position
        end = self.size if n is None or n < 0 else min(self.size, start + n)
        if end <= start:
            return b""
        data = self._get(start, end) if end - start > self._block_bytes else self._cached(start, end)
        self._position = end
        return data

    def readall(self) -> bytes:
        return self.read(-1)

    def readinto(self, buffer) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _cached(self, start: int, end: int) -> bytes:
        first, last = start // self._block_bytes, (end - 1) // self._block_bytes
        data = b"".join(self._block(index) for index in range(first, last + 1))
        offset = first * self._block_bytes
        return data[start - offset : end - offset]

    def _block(self, index: int) -> bytes:
        block = self._blocks.pop(index, None)
        if block is None:
            start = index * self._block_bytes
            block = self._get(start, min(self.size, start + self._block_bytes))
        self._blocks[index] = block
        while len(self._blocks) > self._blocks_kept:
            self._blocks.popitem(last=False)
        return block

    def _get(self, start: int, end: int) -> bytes:
        self.bytes_fetched += end - start
        return self._fetch(start, end)
