"""A checkpoint's files on their way to the run folder and back, of whichever kind of run. Light: loads no model code."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from jala_ray import storage
from jala_ray.storage import StorageOptions
from jala_ray.training import history
from jala_ray.training.lease import Lease, guard
from jala_ray.types import CheckpointError, DamagedCheckpoint, DamagedFiles, StorageError

T = TypeVar("T")

SAVES = 3
"""Times that a checkpoint is tried to be saved before that is a failure of the run."""
PLACE = "place"
"""File of a shared copy's folder that says where the checkpoint's files lie: on a disk they stay where they are."""
PAUSE_S = 1.0
"""After the first try, and longer by as much after each."""


def save(folder: Path, address: str, options: StorageOptions, lease: Lease | None) -> None:
    """Commit a checkpoint's files under `address`, trying again what went wrong; nobody else may write there, as `lease` makes sure."""
    ours = {"replace_unfinished": True, "replace_committed": True, "guard": guard(lease)}
    tried(address, lambda: storage.upload_dir(folder, address, options, **ours))


def tried(address: str, work: Callable[[], T]) -> T:
    """`work`, a part of saving a checkpoint, done again where that goes wrong for a reason that may pass."""
    for attempt in range(1, SAVES):
        try:
            return work()
        except StorageError as error:
            print(f"WARNING checkpoint {address}: attempt {attempt} of {SAVES} to save it failed: {error}", flush=True)
            time.sleep(PAUSE_S * attempt)
    return work()


def local_copy(uri: str, scratch: str | Path, options: StorageOptions | None = None) -> Path:
    """A verified local folder of the checkpoint: itself, or a download. Raises `CheckpointError` with what is wrong."""
    if not storage.is_committed(uri, options):
        remedy = "It was not finished, or this is not a checkpoint folder (a run folder holds them under checkpoints/)."
        raise CheckpointError("checkpoint", uri, "a folder with COMMIT.json", remedy)
    if not storage.is_s3(uri):
        storage.verify_dir(uri, options)
        return Path(storage.local_path(uri))
    local = Path(scratch) / uri.rstrip("/").rpartition("/")[2]
    storage.download_dir(uri, local, options)
    return local


def room(uri: str | None, options: StorageOptions | None = None) -> int:
    """Bytes that a local copy of a checkpoint takes; 0 where none is made, or there is none to make, as `local_copy` will say."""
    if uri is None or not storage.is_s3(uri):
        return 0
    try:
        return sum(entry.size for entry in storage.read_commit(uri, options).files.values())
    except (storage.MissingFile, DamagedFiles):
        return 0


@contextlib.contextmanager
def shared_copy(uri: str, purpose: str, options: StorageOptions | None = None) -> Iterator[Path]:
    """A verified local folder of the checkpoint, which is read and verified once for all processes of this machine that are within.

    Raises as `local_copy`.
    """
    if not storage.is_committed(uri, options):
        local_copy(uri, "", options)  # says so
    key = f"{uri} {storage.read_commit(uri, options).to_json().decode()}"

    def fill(folder: Path) -> None:
        place = local_copy(uri, folder, options)
        (folder / PLACE).write_text(str(place))

    with storage.shared_scratch(purpose, key, fill, room(uri, options)) as folder:
        yield Path((folder / PLACE).read_text())


@contextlib.contextmanager
def own_copy(uri: str, options: StorageOptions | None = None) -> Iterator[Path]:
    """`shared_copy` of a checkpoint to continue from. One that is proven damaged is set aside, for whoever asks for the newest one next.

    Raises `DamagedCheckpoint` for it, and where it is gone by now; `StorageError` for what says nothing of the checkpoint.
    """
    with contextlib.ExitStack() as held:
        try:
            folder = held.enter_context(shared_copy(uri, "resume", options))
        except (StorageError, CheckpointError) as error:
            if isinstance(error, DamagedFiles):
                history.set_aside(uri, str(error), options)
            elif storage.is_committed(uri, options):
                raise
            remedy = "It was set aside: started again, the run goes on from the one before."
            raise DamagedCheckpoint("checkpoint", uri, f"the files that were written ({error})", remedy) from error
        yield folder
