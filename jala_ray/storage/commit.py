"""Commit markers: what a folder that is there completely says of itself."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from jala_ray.storage.files import Uri, read_bytes
from jala_ray.storage.stores import MissingFile, StorageOptions, join
from jala_ray.types import DamagedFiles, StorageError

COMMIT_FILE = "COMMIT.json"
CLAIM_FILE = "UPLOADING.json"
FORMAT = 1


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file of a committed folder."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """The content of a commit marker: relative file name -> entry."""

    files: dict[str, FileEntry]

    def to_json(self) -> bytes:
        files = {name: asdict(self.files[name]) for name in sorted(self.files)}
        return json.dumps({"format": FORMAT, "files": files}, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Commit:
        try:
            content = json.loads(data)
            found = content["format"]
            # Another format is no damage: a version of this package to come may have written it.
            files = {name: FileEntry(**entry) for name, entry in content["files"].items()} if found == FORMAT else {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedFiles(
                f"commit marker of {where}", str(error), "a readable marker", "Delete the folder."
            ) from error
        if found != FORMAT:
            raise StorageError(f"format of the commit marker of {where}", found, str(FORMAT))
        return cls(files)


def is_committed(uri: Uri, options: StorageOptions | None = None) -> bool:
    """Whether the folder carries a commit marker (its files were all verified when it was written)."""
    try:
        read_commit(uri, options)
    except MissingFile:
        return False
    return True


def read_commit(uri: Uri, options: StorageOptions | None = None) -> Commit:
    """The marker of a committed folder. Raises MissingFile without one, DamagedFiles if it is unreadable."""
    try:
        data = read_bytes(join(uri, COMMIT_FILE), options)
    except MissingFile as error:
        raise MissingFile(
            f"folder {uri}",
            f"no {COMMIT_FILE}",
            "a committed folder",
            "It does not exist, or its upload did not finish.",
        ) from error
    return Commit.from_json(data, os.fspath(uri))
