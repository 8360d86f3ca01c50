"""pyarrow's view of an S3 store, for Parquet and for Ray: the same requests, with the same patience, as everything else makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from jala_ray.storage.files import open_file
from jala_ray.storage.folders import delete_dir
from jala_ray.storage.stores import MissingFile, StorageOptions, explained, store_for
from jala_ray.types import StorageError


@dataclass(frozen=True)
class StoreHandler(pafs.FileSystemHandler):
    """Objects under `bucket/key` paths. There are no folders of their own: one is there while a key begins with its name."""

    options: StorageOptions

    def get_type_name(self) -> str:
        return "s3"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Iterable[str]) -> list[pafs.FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> pafs.FileInfo:
        store, place, uri = self._at(path)
        try:
            if "/" in place:
                with explained("look at", uri, self.options):
                    return pafs.FileInfo(path, pafs.FileType.File, size=store.size(place))
        except MissingFile:
            pass  # Then it may be a folder.
        with explained("list", uri, self.options):
            found = store.is_folder(place)
        return pafs.FileInfo(path, pafs.FileType.Directory if found else pafs.FileType.NotFound)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        base = selector.base_dir.rstrip("/")
        store, place, uri = self._at(base)
        with explained("list", uri, self.options):
            if selector.recursive:
                sizes = store.walk(place)
                folders = {name[:at] for name in sizes for at in range(len(name)) if name[at] == "/"}
            else:
                sizes, folders = store.entries(place)
        if not sizes and not folders and not selector.allow_not_found:
            raise FileNotFoundError(f"no object under {uri}")
        found = [pafs.FileInfo(f"{base}/{name}", pafs.FileType.Directory) for name in sorted(folders)]
        return found + [pafs.FileInfo(f"{base}/{name}", pafs.FileType.File, size=size) for name, size in sizes.items()]

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing to do."""

    def delete_dir(self, path: str) -> None:
        delete_dir(f"s3://{path}", self.options)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        delete_dir(f"s3://{path}", self.options)

    def delete_root_dir_contents(self) -> None:
        raise StorageError("delete", "everything", "a folder inside a bucket")

    def delete_file(self, path: str) -> None:
        store, place, uri = self._at(path)
        with explained("delete", uri, self.options):
            store.delete(place)

    def move(self, src: str, dest: str) -> None:
        self.copy_file(src, dest)
        self.delete_file(src)

    def copy_file(self, src: str, dest: str) -> None:
        store, place, uri = self._at(dest)
        with explained("copy to", uri, self.options):
            store.copy(src, place)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(open_file(f"s3://{path}", "rb", self.options), mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Mapping[str, str] | None) -> pa.NativeFile:
        return pa.PythonFile(open_file(f"s3://{path}", "wb", self.options), mode="w")

    def open_append_stream(self, path: str, metadata: Mapping[str, str] | None) -> pa.NativeFile:
        raise StorageError("append to", f"s3://{path}", "a new object", "Objects cannot be added to.")

    def _at(self, path: str) -> tuple[Any, str, str]:
        """The store, the path in it, and the address of it."""
        uri = f"s3://{path}"
        store, place = store_for(uri, self.options)
        return store, place, uri
