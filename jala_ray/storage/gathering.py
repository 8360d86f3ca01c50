"""A folder that several processes fill from memory, each with files of its own, and that one of them commits.

On S3 files go to their places below the committing process's claim; on disk into a sibling folder that is renamed. Both bear a token, the
same for all writers of one folder and for no others. Who is done leaves a record in the folder (`PART-00001.json`: names, sizes, SHA-256),
for which the committing process looks: writers need not hear of each other, and what a kill leaves is an unfinished folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jala_ray.storage.commit import CLAIM_FILE, COMMIT_FILE, Commit, FileEntry, read_commit
from jala_ray.storage.files import read_bytes
from jala_ray.storage.folders import (
    SENDS,
    WORKERS,
    Rights,
    check_file,
    commit_claimed,
    is_claimed,
    rename_folder,
    take_claim,
    taken_over,
)
from jala_ray.storage.patience import parallel
from jala_ray.storage.stores import MissingFile, StorageOptions, explained, is_s3, join, local_path, store_for
from jala_ray.types import DamagedFiles, StorageError

LOOK_S = 0.2
"""Between two looks for another process's record, on disk; a store is asked less often."""
STORE_LOOK_S = 1.0
OPENER = 0
"""Number of the committing process; its record says that the others may begin."""


class Abandoned(Exception):
    """Nobody wants the folder any more."""


@dataclass(frozen=True)
class Gathering:
    """One process's hold of such a folder, of which the address may hold an unfinished or a committed one that it takes the place of."""

    uri: str
    token: str
    """8 hex digits."""
    options: StorageOptions | None = None
    guard: Callable[[], None] = lambda: None
    """Called right before anything at the address is removed and right before the commit; what it raises stops that."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Ends what waits for others by `Abandoned`."""
    written: threading.Event = field(default_factory=threading.Event)
    """Whoever is waited for is known to have left a record: what is not seen within `options.patience_s` from then on is elsewhere."""

    @functools.cached_property
    def place(self) -> str:
        """Address that is written to."""
        if is_s3(self.uri):
            return self.uri
        final = Path(local_path(self.uri))
        return str(final.with_name(f".{final.name}.{self.token}.part"))

    @property
    def rights(self) -> Rights:
        return Rights(unfinished=True, committed=True, guard=self.guard)

    def open(self) -> None:
        """By the committing process: the others may write. Raises StorageError where another writer holds the address."""
        if is_s3(self.uri) and not is_claimed(self.uri, self.token, self.options):
            take_claim(self.uri, self.token, self.options, self.rights)
        self.record(OPENER, {})

    def write(self, files: Mapping[str, bytes | memoryview]) -> dict[str, FileEntry]:
        """Write files, hash them meanwhile, read them back. Raises StorageError where one does not arrive intact, Abandoned."""
        self._wait([OPENER])
        return dict(
            zip(files, parallel(lambda name: self._send(name, memoryview(files[name])), files, WORKERS), strict=True)
        )

    def _send(self, name: str, data: memoryview) -> FileEntry:
        store, path = store_for(join(self.place, name), self.options)
        for tries_left in reversed(range(SENDS)):
            self._still_wanted()
            try:
                with explained("write", join(self.uri, name), self.options), ThreadPoolExecutor(1) as beside:
                    digest = beside.submit(lambda: hashlib.sha256(data).hexdigest())
                    store.put(path, data)
                    entry = FileEntry(len(data), digest.result())
                check_file(store, path, name, entry, self.uri, self.options, digest=True)
            except DamagedFiles:
                if not tries_left:
                    raise
            else:
                return entry
        raise AssertionError("SENDS is at least 1")

    def _still_wanted(self) -> None:
        if self.stopped.is_set():
            raise Abandoned(self.uri)
        if is_s3(self.uri) and not is_claimed(self.uri, self.token, self.options):
            raise taken_over(self.uri)

    def record(self, number: int, files: Mapping[str, FileEntry]) -> None:
        """Process `number` has written these."""
        said = {"token": self.token, "files": {name: asdict(entry) for name, entry in files.items()}}
        store, path = store_for(join(self.place, _record(number)), self.options)
        with explained("write", join(self.uri, _record(number)), self.options):
            store.write(path, json.dumps(said).encode())

    def others(self, numbers: Iterable[int]) -> dict[str, FileEntry]:
        """What these processes have written, waited for; sizes are looked at from here. Raises Abandoned, StorageError."""
        files = {name: entry for found in self._wait(list(numbers)) for name, entry in found.items()}
        store, path = store_for(self.place, self.options)
        for name, entry in files.items():
            check_file(store, join(path, name), name, entry, self.uri, self.options, digest=False)
        return files

    def _wait(self, numbers: list[int]) -> list[dict[str, FileEntry]]:
        found, until = dict[int, dict[str, FileEntry]](), None
        while True:
            missing = [number for number in numbers if number not in found]
            found |= {number: files for number in missing if (files := self._recorded(number)) is not None}
            if len(found) == len(numbers):
                return [found[number] for number in numbers]
            if self.written.is_set():
                until = until or time.monotonic() + (self.options or StorageOptions()).patience_s
                if time.monotonic() > until:
                    raise self._unseen(sorted(set(numbers) - set(found)))
            if self.stopped.wait(STORE_LOOK_S if is_s3(self.uri) else LOOK_S):
                raise Abandoned(self.uri)

    def _unseen(self, numbers: list[int]) -> StorageError:
        remedy = "Use an s3:// address, or a disk that all machines mount at the same path."
        return StorageError(f"commit {self.uri}", f"nothing of what processes {numbers} wrote", "their files", remedy)

    def _recorded(self, number: int) -> dict[str, FileEntry] | None:
        try:
            said = json.loads(read_bytes(join(self.place, _record(number)), self.options))
        except MissingFile:
            return None
        if said["token"] != self.token:  # of a writer whose folder this was before
            return None
        return {name: FileEntry(**entry) for name, entry in said["files"].items()}

    def commit(self, files: Mapping[str, FileEntry], writers: Iterable[int]) -> Commit:
        """The folder is there, of these files; `writers` have left records. Once it is, again is no error. Raises StorageError."""
        commit = Commit(dict(files))
        if self._holds(commit):
            self._leave()
            return commit
        with explained("commit", self.uri, self.options):
            store, path = store_for(self.place, self.options)
            for number in {OPENER, *writers}:
                store.delete(join(path, _record(number)))
            if is_s3(self.uri):
                commit_claimed(self.uri, self.token, commit, self.options, self.rights)
            else:
                store.write(join(path, COMMIT_FILE), commit.to_json())
                self._rename(Path(path))
        return commit

    def _holds(self, commit: Commit) -> bool:
        """An earlier try may have committed, and its answer been lost."""
        try:
            return read_commit(self.uri, self.options) == commit
        except StorageError:
            return False

    def _leave(self) -> None:
        """What is still there of a try that had committed."""
        if is_s3(self.uri):
            store, path = store_for(self.uri, self.options)
            store.delete(join(path, CLAIM_FILE))
        else:
            shutil.rmtree(self.place, ignore_errors=True)

    def _rename(self, folder: Path) -> None:
        store, final = store_for(self.uri, self.options)
        if Path(final).exists() and (there := store.walk(final)):
            self.rights.clear(self.uri, there, self.options)  # only now: until then the old folder is whole
        self.guard()
        rename_folder(folder, Path(final))


def _record(number: int) -> str:
    return f"PART-{number:05d}.json"
