"""A local video as a demuxer reads it, by reads that outlast a hiccup of a network mount.

libavformat's own reading would take the hiccup for the file's end, or for damage.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TypeVar

from jala_ray.storage import ChangedFile, MissingFile, StorageOptions
from jala_ray.storage.patience import GaveUp, patiently
from jala_ray.storage.stores import DISKS, explained

T = TypeVar("T")


class LocalVideo:
    """A regular file, opened for reading; close it.

    Raises MissingFile, OSError where the answer about the file is no, `StoreUnavailable` without an answer within
    `options.patience_s`, ChangedFile where the file is another one after a hiccup.
    """

    def __init__(self, path: str, options: StorageOptions | None = None) -> None:
        self.path, self.options = path, options or StorageOptions()
        self.name = f"file:{path}"
        """What libavformat takes for the file's address; the prefix keeps odd names from being read as protocols."""
        self._handle: int | None = None
        self._position = 0
        self._identity = self._asked(self._open)

    @property
    def size(self) -> int:
        return self._identity[0]

    def read(self, n: int) -> bytes:
        data = self._asked(lambda: self._read(n))
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            os.close(handle)

    def __enter__(self) -> LocalVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self, n: int) -> bytes:
        if self._handle is None and self._open() != self._identity:
            remedy = "It was replaced meanwhile."
            raise ChangedFile(f"read {self.path}", "another file", "the one whose reading began", remedy)
        assert self._handle is not None
        try:
            return os.pread(self._handle, n, self._position)
        except OSError:
            self.close()  # Of a file that a mount has forgotten, every read with this handle fails.
            raise

    def _open(self) -> tuple[int, int]:
        """The file's size, and when it was last written."""
        self.close()
        try:
            regular = stat.S_ISREG(os.stat(self.path).st_mode)
            if regular:  # Opening a pipe would wait for a writer.
                self._handle = os.open(self.path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: no file has such a name.
            raise MissingFile(f"open {self.path}", "no such file", "a file") from error
        if self._handle is None:
            raise MissingFile(f"open {self.path}", "something else", "a file")
        status = os.fstat(self._handle)
        return status.st_size, status.st_mtime_ns

    def _asked(self, work: Callable[[], T]) -> T:
        try:
            return patiently(work, DISKS, self.options.patience_s)
        except GaveUp:
            with explained("read", self.path, self.options):
                raise
