"""Which checkpoints a run folder holds. Light: Ray's controller reads it at every start of a worker group."""

from __future__ import annotations

from jala_ray import storage
from jala_ray.storage import StorageOptions

PREFIX = "step-"


def checkpoint_name(step: int) -> str:
    return f"{PREFIX}{step:08d}"


def address(run: str, step: int) -> str:
    """Where the checkpoint after `step` steps lies."""
    return storage.join(run, "checkpoints", checkpoint_name(step))


def committed_steps(run: str, options: StorageOptions | None = None) -> list[str]:
    """Addresses of a run folder's committed checkpoints, oldest first; unfinished ones are passed over."""
    root = storage.join(run, "checkpoints")
    try:
        names = storage.list_dir(root, options)
    except storage.MissingFile:
        return []
    found = [storage.join(root, name) for name in sorted(names) if name.startswith(PREFIX)]
    return [uri for uri in found if storage.is_committed(uri, options)]


def newest(run: str, options: StorageOptions | None = None) -> str | None:
    """Address of the newest committed checkpoint of a run folder, or None."""
    return next(reversed(committed_steps(run, options)), None)


def step_of(uri: str) -> int:
    return int(uri.rstrip("/").rpartition(PREFIX)[2])


def prune(run: str, keep: int, options: StorageOptions | None = None) -> None:
    """Delete all but the `keep` newest committed checkpoints."""
    for uri in committed_steps(run, options)[:-keep]:
        storage.delete_dir(uri, options)
