"""Which checkpoints a run folder holds. Light: Ray's controller reads it at every start of a worker group."""

from __future__ import annotations

import json
from collections.abc import Iterator

from jala_ray import storage
from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError, DamagedFiles, StorageError

PREFIX = "step-"
DAMAGED_FILE = "DAMAGED.json"
"""Why a checkpoint was set aside; in place of its commit marker."""


def checkpoint_name(step: int) -> str:
    return f"{PREFIX}{step:08d}"


def address(run: str, step: int) -> str:
    """Where the checkpoint after `step` steps lies."""
    return storage.join(run, "checkpoints", checkpoint_name(step))


def folders(run: str, options: StorageOptions | None = None) -> list[str]:
    """Addresses of all checkpoint folders, newest first, whatever state they are in."""
    root = storage.join(run, "checkpoints")
    try:
        names = storage.list_dir(root, options)
    except storage.MissingFile:
        return []
    steps = {name: name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)}
    return [storage.join(root, name) for name in sorted(steps, reverse=True) if steps[name].isdigit()]


def _committed(run: str, options: StorageOptions | None) -> Iterator[str]:
    """Newest first; those without a readable marker are passed over."""
    for uri in folders(run, options):
        try:
            if storage.is_committed(uri, options):
                yield uri
        except StorageError as error:
            print(f"checkpoint {uri} is passed over: {error}", flush=True)


def committed_steps(run: str, options: StorageOptions | None = None) -> list[str]:
    """Addresses of a run folder's committed checkpoints, oldest first; unfinished and damaged ones are passed over."""
    return list(_committed(run, options))[::-1]


def newest(run: str, options: StorageOptions | None = None) -> str | None:
    """Address of the newest committed checkpoint of a run folder, or None."""
    return next(_committed(run, options), None)


def resolve(address: str, options: StorageOptions | None = None) -> str:
    """A checkpoint's address: itself, or the newest one of the run folder that it names. Raises `ConfigError` for neither."""
    if storage.is_committed(address, options):
        return address
    found = newest(address, options)
    if found is None:
        raise ConfigError("checkpoint", address, "a checkpoint folder, or a run folder with one under checkpoints/")
    return found


def step_of(uri: str) -> int:
    return int(uri.rstrip("/").rpartition(PREFIX)[2])


def prune(run: str, keep: int, options: StorageOptions | None = None) -> None:
    """Delete all but the `keep` newest committed checkpoints."""
    for uri in committed_steps(run, options)[:-keep]:
        _delete(uri, options)


def _delete(uri: str, options: StorageOptions | None) -> None:
    """No reason to end a run where it fails: the marker is gone first, and the next start comes back to the rest."""
    try:
        storage.delete_dir(uri, options)
    except StorageError as error:
        print(f"WARNING checkpoint {uri} could not be deleted: {error}", flush=True)


def set_aside(uri: str, why: str, options: StorageOptions | None = None) -> None:
    """A damaged checkpoint is none any more: everyone who asks for the newest gets an older one. Its files stay for a look."""
    print(f"checkpoint {uri} is damaged and passed over: {why}", flush=True)
    if not storage.exists(storage.join(uri, storage.COMMIT_FILE), options):
        return  # nobody takes it for whole
    storage.write_bytes(storage.join(uri, DAMAGED_FILE), json.dumps({"why": why}, indent=1).encode(), options)
    storage.delete(storage.join(uri, storage.COMMIT_FILE), options)


def settle(run: str, options: StorageOptions | None = None) -> None:
    """See to it that the newest checkpoint's files are all there in their sizes. For the holder of the run folder's lease, at its start.

    Checkpoints of which they are not are set aside, those whose saving was cut off are deleted. Bytes are compared where they are read.
    """
    found = folders(run, options)
    for uri in found:
        if not _has_marker(uri, options):
            print(f"checkpoint {uri} was not finished: deleted", flush=True)
            _delete(uri, options)
    for uri in found:
        if _sound(uri, options):
            return


def _sound(uri: str, options: StorageOptions | None) -> bool:
    try:
        storage.verify_dir(uri, options, digest=False)
    except storage.MissingFile:
        return False
    except DamagedFiles as error:
        set_aside(uri, str(error), options)
        return False
    return True


def _has_marker(uri: str, options: StorageOptions | None) -> bool:
    return any(storage.exists(storage.join(uri, name), options) for name in (storage.COMMIT_FILE, DAMAGED_FILE))
