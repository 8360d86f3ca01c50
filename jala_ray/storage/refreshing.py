"""A pyarrow file system whose credentials stay fresh, and which holds none when it is pickled."""

from __future__ import annotations

import os

import pyarrow.fs
from pyarrow.fs import FileSelector, FileSystemHandler

from jala_ray.storage.stores import StorageOptions


class RefreshingFileSystem(pyarrow.fs.PyFileSystem):
    """pyarrow's S3 client cannot renew credentials that it was given: every operation here takes one that has today's."""

    def __init__(self, options: StorageOptions, bucket: str) -> None:
        super().__init__(_Handler(options, bucket))

    def __reduce__(self):
        return type(self), (self.handler.options, self.handler.bucket)

    @property
    def region(self) -> str:
        return self.handler.current.region


class _Handler(FileSystemHandler):
    """Hands each operation to a file system with credentials that are valid now. A stream keeps those that it was opened with."""

    def __init__(self, options: StorageOptions, bucket: str) -> None:
        self.options, self.bucket = options, bucket

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handler) and (self.options, self.bucket) == (other.options, other.bucket)

    __hash__ = None  # type: ignore[assignment]

    @property
    def current(self) -> pyarrow.fs.S3FileSystem:
        from jala_ray.storage.clients import fresh_arrow  # which makes this file's file systems

        return fresh_arrow(self.options, self.bucket, os.getpid())

    def get_type_name(self) -> str:
        return "s3"

    def normalize_path(self, path):
        return self.current.normalize_path(path)

    def get_file_info(self, paths):
        return self.current.get_file_info(paths)

    def get_file_info_selector(self, selector: FileSelector):
        return self.current.get_file_info(selector)

    def create_dir(self, path, recursive):
        self.current.create_dir(path, recursive=recursive)

    def delete_dir(self, path):
        self.current.delete_dir(path)

    def delete_dir_contents(self, path, missing_dir_ok=False):
        self.current.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self):
        self.current.delete_dir_contents("", accept_root_dir=True)

    def delete_file(self, path):
        self.current.delete_file(path)

    def move(self, src, dest):
        self.current.move(src, dest)

    def copy_file(self, src, dest):
        self.current.copy_file(src, dest)

    def open_input_stream(self, path):
        return self.current.open_input_stream(path, compression=None)

    def open_input_file(self, path):
        return self.current.open_input_file(path)

    def open_output_stream(self, path, metadata):
        return self.current.open_output_stream(path, compression=None, metadata=metadata)

    def open_append_stream(self, path, metadata):
        return self.current.open_append_stream(path, compression=None, metadata=metadata)
