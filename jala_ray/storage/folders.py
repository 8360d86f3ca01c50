"""Folders that are there completely or not at all: verified copies with a commit marker written last."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jala_ray.storage.commit import CLAIM_FILE, COMMIT_FILE, Commit, FileEntry, is_committed, read_commit
from jala_ray.storage.diagnosis import free_near
from jala_ray.storage.files import Uri
from jala_ray.storage.patience import GaveUp, parallel
from jala_ray.storage.stores import (
    LocalStore,
    MissingFile,
    StorageOptions,
    Store,
    explained,
    is_s3,
    join,
    local_path,
    partial_name,
    store_for,
    sync_folder,
)
from jala_ray.types import DamagedFiles, StorageError

WORKERS = 4
SENDS = 3
"""Times a file is sent in all, where it does not arrive intact."""
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}
"""How a rename is refused where something else has the name."""


def upload_dir(
    local: Uri,
    uri: Uri,
    options: StorageOptions | None = None,
    *,
    replace_unfinished: bool = False,
    replace_committed: bool = False,
    guard: Callable[[], None] | None = None,
) -> Commit:
    """Copy a local folder to `uri` (S3 or another local path), verify it, and commit it.

    Every file is read back and its SHA-256 compared with the local one before the marker is written. The
    bytes themselves are read because nothing cheaper is believed everywhere: an upload may be reported as
    done and be absent or damaged, the ETag of a multipart or encrypted object is not a digest of its content,
    and stored checksums are not known to older servers. A file that did not arrive intact is sent again, up to
    `SENDS` times in all.

    One writer wins: on S3 a claim and the marker are written on condition that they do not exist; locally the
    files are gathered in a sibling folder that is renamed into place. What a writer that died left behind is
    refused, unless `replace_unfinished` says to remove it. A committed folder is never touched, unless
    `replace_committed` says that whoever calls holds the address: one that already holds exactly these files
    is left as it is, another is replaced, its marker deleted first. Symbolic links are followed, empty folders
    are not kept.

    `guard` is called right before anything at the address is removed and right before the commit; what it
    raises stops the upload there.

    Raises StorageError: nothing to upload, the address is committed or claimed, a file did not arrive intact.
    """
    source, rights = Path(local_path(local)), Rights(replace_unfinished, replace_committed, guard or (lambda: None))
    if not source.is_dir():
        raise MissingFile(f"upload {source}", "no such folder", "a local folder")
    names = [name for name in LocalStore().walk(str(source)) if name not in (COMMIT_FILE, CLAIM_FILE)]
    if not names:
        raise StorageError(f"upload {source}", "an empty folder", "at least one file")
    if replace_committed:
        if (there := _same_content(source, names, uri, options)) is not None:
            return there
    elif is_committed(uri, options):
        raise _final(uri)
    staged = _staged_on_s3 if is_s3(uri) else _staged_locally
    with (
        explained("upload to", uri, options),
        staged(uri, options, rights) as (store, path, finish),
    ):

        def send(name: str) -> FileEntry:
            for tries_left in reversed(range(SENDS)):
                entry = _entry(source / name)
                try:
                    with explained("upload to", join(uri, name), options):
                        store.upload(source / name, join(path, name))
                    check_file(store, join(path, name), name, entry, uri, options, digest=True)
                except DamagedFiles:
                    if not tries_left:
                        raise
                else:
                    return entry
            raise AssertionError("SENDS is at least 1")

        commit = Commit(dict(zip(names, parallel(send, names, WORKERS), strict=True)))
        finish(commit)
    return commit


def _entry(file: Path) -> FileEntry:
    return FileEntry(file.stat().st_size, _digest(LocalStore().stream(str(file))))


def _same_content(source: Path, names: list[str], uri: Uri, options: StorageOptions | None) -> Commit | None:
    """The committed folder at `uri` if it holds exactly the files of a local one, all intact; else None.

    So is an earlier try of the same upload whose end was never heard of.
    """
    try:
        there = read_commit(uri, options)
        if there != Commit({name: _entry(source / name) for name in names}):
            return None
        return verify_dir(uri, options)
    except StorageError:  # Damaged, or gone by now: no reason to keep it.
        return None


@dataclass(frozen=True)
class Rights:
    """What an upload may remove, and who is asked before it does."""

    unfinished: bool
    committed: bool
    guard: Callable[[], None]

    def clear(self, uri: Uri, there: Iterable[str], options: StorageOptions | None) -> None:
        """Remove what is at an address. Raises StorageError where that is not allowed."""
        if COMMIT_FILE in there:
            if not self.committed:
                raise _final(uri)
        elif not self.unfinished:
            raise _unfinished(uri, there)
        self.guard()
        delete_dir(uri, options)


@contextlib.contextmanager
def _staged_on_s3(uri: Uri, options: StorageOptions | None, rights: Rights):
    store, path = store_for(uri, options)
    token = uuid.uuid4().hex
    take_claim(uri, token, options, rights)
    yield store, path, lambda commit: commit_claimed(uri, token, commit, options, rights)


def take_claim(uri: Uri, token: str, options: StorageOptions | None, rights: Rights) -> None:
    """Clear an address on S3 and claim it. Raises StorageError where it may not be cleared, or another writer was faster."""
    store, path = store_for(uri, options)
    if there := store.walk(path):
        rights.clear(uri, there, options)
    store.write(join(path, CLAIM_FILE), _claim(token), only_new=True)
    if others := set(store.walk(path)) - {CLAIM_FILE}:  # A whole upload may have gone by before the claim.
        store.delete(join(path, CLAIM_FILE))
        raise _unfinished(uri, others)


def _claim(token: str) -> bytes:
    return json.dumps({"upload": token}).encode()


def is_claimed(uri: Uri, token: str, options: StorageOptions | None) -> bool:
    """Whether the claim of an address on S3 is that of `token`."""
    store, path = store_for(uri, options)
    try:
        with explained("read", join(uri, CLAIM_FILE), options):
            return store.read(join(path, CLAIM_FILE), 0, None) == _claim(token)
    except MissingFile:
        return False


def commit_claimed(uri: Uri, token: str, commit: Commit, options: StorageOptions | None, rights: Rights) -> None:
    """Write the marker of an address on S3 whose claim is still that of `token`. Raises StorageError where it isn't."""
    store, path = store_for(uri, options)
    if not is_claimed(uri, token, options):
        raise taken_over(uri)
    rights.guard()
    # A marker of the same bytes that another writer was faster with says the same of the same files: it may pass for our own.
    store.write(join(path, COMMIT_FILE), commit.to_json(), only_new=True)
    store.delete(join(path, CLAIM_FILE))


def taken_over(uri: Uri) -> StorageError:
    return StorageError(f"commit {uri}", "another upload's claim", "this upload's claim", "Another writer took over.")


@contextlib.contextmanager
def _staged_locally(uri: Uri, options: StorageOptions | None, rights: Rights):
    store, path = store_for(uri, options)
    final = Path(path).absolute()

    def there() -> dict[str, int]:
        return store.walk(path) if final.exists() else {}

    if (found := there()) and COMMIT_FILE not in found:
        rights.clear(uri, found, options)
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = final.with_name(partial_name(final.name))
    try:

        def finish(commit: Commit) -> None:
            store.write(join(str(staging), COMMIT_FILE), commit.to_json(), only_new=True)
            if rights.committed and COMMIT_FILE in (found := there()):
                rights.clear(uri, found, options)  # Only now: until then the old folder is whole.
            rights.guard()
            rename_folder(staging, final)

        yield store, str(staging), finish
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def rename_folder(staging: Path, final: Path) -> None:
    """Move a finished folder into place; the system refuses if a folder with files is there by now."""
    try:
        os.rename(staging, final)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        raise StorageError(
            f"commit {final}", str(error), "no other folder of this name", "Another writer was first."
        ) from error
    sync_folder(str(final.parent))


def _final(uri: Uri) -> StorageError:
    return StorageError(
        f"upload to {uri}", "a committed folder", "an address not yet used", "Committed folders are final."
    )


def _unfinished(uri: Uri, leftovers: Iterable[str]) -> StorageError:
    return StorageError(
        f"upload to {uri}",
        f"files of another upload: {', '.join(sorted(leftovers)[:5])}",
        "an empty address",
        "It is under way or died; delete_dir() it, or pass replace_unfinished=True if it died.",
    )


def verify_dir(uri: Uri, options: StorageOptions | None = None, *, digest: bool = True) -> Commit:
    """Check every file of a committed folder: presence, size and, with `digest`, SHA-256 of its bytes.

    Raises MissingFile without a marker, DamagedFiles that names the missing or damaged file, or the marker.
    """
    commit = read_commit(uri, options)
    with explained("verify", uri, options):
        store, path = store_for(uri, options)
        parallel(
            lambda n: check_file(store, join(path, n), n, commit.files[n], uri, options, digest=digest),
            commit.files,
            WORKERS,
        )
    return commit


def download_dir(uri: Uri, local: Uri, options: StorageOptions | None = None) -> Commit:
    """Bring a committed folder to a local path, verified on the way; the local folder is committed as well.

    A local folder that already carries the same marker and sizes is left as it is, so that several processes
    of a machine may ask for the same one. Raises as `verify_dir`, and StorageError if the local path holds
    something else or cannot be written to: that one names the path, and says nothing of the store.
    """
    commit = read_commit(uri, options)
    target = Path(local_path(local))
    with _written_here(target):
        if _holds(target, commit):
            return commit
        if target.exists() and any(target.iterdir()):
            raise StorageError(
                f"download to {target}", "another folder", "an empty or new path", "Choose another path."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(partial_name(target.name))
    with explained("download", uri, options):
        store, path = store_for(uri, options)

    def chunks(name: str) -> Iterator[bytes]:
        with explained("download", join(uri, name), options):
            yield from store.stream(join(path, name))

    def fetch(name: str) -> None:
        check_file(store, join(path, name), name, commit.files[name], uri, options, digest=False)
        destination = staging / name
        with _written_here(destination):
            destination.parent.mkdir(parents=True, exist_ok=True)
            with open(destination, "wb") as file:
                digest = _digest(chunks(name), file.write)
                file.flush()
                os.fsync(file.fileno())
        _compare(digest, name, commit.files[name], uri)

    try:
        parallel(fetch, commit.files, WORKERS)
        with _written_here(target):
            LocalStore().write(str(staging / COMMIT_FILE), commit.to_json())
            try:
                rename_folder(staging, target)
            except StorageError:
                if not _holds(target, commit):
                    raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return commit


@contextlib.contextmanager
def _written_here(path: Path) -> Iterator[None]:
    """Tell an error of this machine's disk as its own, whatever it is, with what is free there."""
    try:
        yield
    except (OSError, GaveUp) as error:
        first = error.first if isinstance(error, GaveUp) else error
        cause = first.strerror if isinstance(first, OSError) and first.strerror else str(first)
        remedy = "Look to this machine's disk and limits, or choose another folder (TMPDIR, of a temporary one)."
        raise StorageError(f"write {path}", f"{cause}: {free_near(path)}", "it to succeed", remedy) from first


def _holds(folder: Path, commit: Commit) -> bool:
    """Whether a local folder is a committed copy of the same content (sizes checked, bytes not)."""
    try:
        if not (folder / COMMIT_FILE).is_file() or read_commit(folder) != commit:
            return False
    except DamagedFiles:
        return False
    sizes = LocalStore().walk(str(folder))
    return all(sizes.get(name) == entry.size for name, entry in commit.files.items())


def delete_dir(uri: Uri, options: StorageOptions | None = None) -> None:
    """Delete a folder and all in it, the marker first: what an interruption leaves does not look whole."""
    with explained("delete", uri, options):
        store, path = store_for(uri, options)
        whole = path if is_s3(uri) else os.path.abspath(path).strip("/")
        if "/" not in whole:
            raise StorageError("delete", os.fspath(uri), "a folder inside a bucket or file system")
        store.delete(join(path, COMMIT_FILE))
        if is_s3(uri):
            # One request each: older servers and newer clients disagree on the checksum bulk deletion needs.
            parallel(store.delete, [join(path, name) for name in store.walk(path)], WORKERS)
        elif os.path.isdir(path):
            shutil.rmtree(path)


def check_file(
    store: Store,
    path: str,
    name: str,
    entry: FileEntry,
    uri: Uri,
    options: StorageOptions | None,
    *,
    digest: bool,
) -> None:
    """Raises DamagedFiles for a file that is not there, or is another."""
    try:
        with explained("look at", join(uri, name), options):
            size = store.size(path)
            if size == entry.size and digest:
                _compare(_digest(store.stream(path)), name, entry, uri)
    except MissingFile as error:
        raise DamagedFiles(
            f"file {name!r} of {uri}", "missing", f"{entry.size} bytes", "Upload the folder again."
        ) from error
    if size != entry.size:
        raise DamagedFiles(f"file {name!r} of {uri}", f"{size} bytes", f"{entry.size} bytes", "The file is damaged.")


def _compare(digest: str, name: str, entry: FileEntry, uri: Uri) -> None:
    if digest != entry.sha256:
        raise DamagedFiles(
            f"file {name!r} of {uri}", f"sha256 {digest}", f"sha256 {entry.sha256}", "The file is damaged."
        )


def _digest(chunks: Iterable[bytes], also: Callable[[bytes], object] | None = None) -> str:
    """SHA-256 (hex) of a stream of chunks, each handed to `also` on the way."""
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk)
        if also is not None:
            also(chunk)
    return sha.hexdigest()
