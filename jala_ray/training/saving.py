"""Checkpoints that nobody waits for: staged in host memory by every rank, then written, verified and committed behind the training.

`Saver.begin` returns when this rank's part is copied; a thread does the rest, beside at most one other of its kind. Nothing collective runs
in a thread: ranks leave records in the folder (`storage.gathering`), and agree between two steps (`poll`, `finish`) on what has come of it.
There every rank raises what went wrong behind any one of them, and every rank hears of a commit at the same step.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jala_ray import storage
from jala_ray.storage import FileEntry, Gathering
from jala_ray.training import history, transfer
from jala_ray.training.device import gather
from jala_ray.training.lease import Lease, guard
from jala_ray.training.staging import Staged
from jala_ray.training.watch import say, waiting_for

Row = dict[str, Any]

LOOK_S = 0.5
"""Between two agreements of ranks that wait for a save."""
TOLD_S = 0.1
"""A wait for an earlier checkpoint is spoken of from then on."""
LATE_S = 60.0
"""How long a run that ends by an error waits for the save that is under way."""


@dataclass
class Save:
    """One checkpoint on its way, on one rank."""

    address: str
    row: Row
    """Of its step."""
    staged: Staged
    folder: Gathering
    began: float = field(default_factory=time.perf_counter)
    ended: threading.Event = field(default_factory=threading.Event)
    seconds: float = 0.0
    """From its begin to its end, here."""
    error: BaseException | None = None


class SaveReport(NamedTuple):
    """What a rank tells the others of its save."""

    ended: bool
    error: BaseException | None
    waited_s: float
    """Since the last agreement."""
    seconds: float
    nbytes: int


class Saver:
    """The checkpoints of a run on one rank. `begin`, `poll`, `finish` and `now` are collective: all ranks call them at the same step."""

    def __init__(
        self,
        run: str,
        options: storage.StorageOptions,
        *,
        keep: int,
        rank: int = 0,
        world: int = 1,
        lease: Lease | None = None,
        sync: Callable[[], None] = lambda: None,
        committed: Callable[[Row, str], None] | None = None,
    ) -> None:
        """`run`: its folder. `sync` brings the folder's other files up to date, before a commit and behind, on rank 0. `committed` is
        called on every rank after a commit, by then at a later step, with the row and the address of the one that was saved.
        """
        self.run, self.options, self.keep, self.rank, self.world = run, options, keep, rank, world
        self.lease, self.sync, self.committed = lease, sync, committed
        self.token: str = gather(uuid.uuid4().hex[:8], world)[0]
        self.save: Save | None = None
        self.waited_s = 0.0
        self.told = Row()
        """Figures that no row has yet."""

    def begin(self, stage: Callable[[], Staged], address: str, row: Row) -> None:
        """Stage a checkpoint and have it written. One that is under way is waited for first, for its buffers are needed."""
        with self._waits():
            if (before := self.save) is not None:
                began = time.perf_counter()
                self.finish()
                waited = time.perf_counter() - began
                if self.rank == 0 and waited > TOLD_S:
                    said = f"WARNING {waited:.1f} s were waited until {before.address} was saved"
                    say(f"{said}: checkpoints are due more often than they can be written")
            folder = Gathering(address, self.token, self.options, guard(self.lease))
            self.save = save = Save(address, row, stage(), folder)
            threading.Thread(target=self._write, args=(save,), name="checkpoint", daemon=True).start()

    def poll(self, interval_s: float) -> Row:
        """Between two steps, `interval_s` after the last row: hear what has come of the save under way. Figures for the row of all ranks.

        Raises on every rank what went wrong behind any one of them.
        """
        waited_s = 0.0
        if self.save is not None:
            waited_s, self.waited_s = self._agree(), 0.0
        told, self.told = self.told, Row()
        return {"save_wait_s": waited_s, "save_wait": waited_s / max(interval_s, 1e-9), **told}

    def finish(self) -> None:
        """Wait until nothing is under way; raises as `poll`."""
        if (save := self.save) is None:
            return
        with self._waits(), waiting_for(f"checkpoint {save.address} to be saved"):
            while self.save is not None:
                save.ended.wait(LOOK_S)
                self._agree()

    def now(self, stage: Callable[[], Staged], address: str, row: Row) -> None:
        """A checkpoint that is in its place on return: before an exit."""
        self.begin(stage, address, row)
        self.finish()

    @contextlib.contextmanager
    def _waits(self) -> Iterator[None]:
        began, before = time.perf_counter(), self.waited_s
        try:
            yield
        finally:
            self.waited_s = before + time.perf_counter() - began

    def _agree(self) -> float:
        """All ranks know of the save under way what any one does; the seconds that the rank waited that waited longest."""
        assert self.save is not None
        save = self.save
        ended = save.ended.is_set()  # asked first: what a thread leaves is there then
        own = SaveReport(ended, _portable(save.error), self.waited_s, save.seconds, save.staged.nbytes)
        said = gather(own, self.world)
        if (error := next((one.error for one in said if one.error is not None), None)) is not None:
            self.save = None
            save.folder.stopped.set()
            raise error
        if all(one.ended for one in said[1:]):
            save.folder.written.set()
        if said[0].ended:  # rank 0 commits, after all others
            self.save = None
            self.told = {"save_s": said[0].seconds, "save_gb": sum(one.nbytes for one in said) / 1e9}
            if self.committed is not None:
                with waiting_for(f"Ray to hear of checkpoint {save.address}"):
                    self.committed(save.row, save.address)
        return max(one.waited_s for one in said)

    # --- behind ------------------------------------------------------------------------------------------------------

    def _write(self, save: Save) -> None:
        try:
            if self.rank == 0:
                self._commit(save)
            elif save.staged.files:
                files = transfer.tried(save.address, lambda: save.folder.write(save.staged.files))
                transfer.tried(save.address, lambda: save.folder.record(self.rank, files))
        except BaseException as error:
            save.error = error
        finally:
            save.seconds = time.perf_counter() - save.began
            save.ended.set()

    def _commit(self, save: Save) -> None:
        """Rank 0's part, what the other ranks have written, and the marker; older checkpoints go."""
        folder, staged, tried = save.folder, save.staged, transfer.tried
        tried(save.address, folder.open)
        files = tried(save.address, lambda: self._own(folder, staged))
        files |= tried(save.address, lambda: folder.others(staged.writers))
        tried(save.address, self.sync)  # rows of a step are there when its checkpoint is
        tried(save.address, lambda: folder.commit(files, staged.writers))
        history.prune(self.run, self.keep, self.options)

    @staticmethod
    def _own(folder: Gathering, staged: Staged) -> dict[str, FileEntry]:
        files = dict(staged.files)
        if staged.more is not None:
            with storage.scratch("checkpoint") as scratch:
                staged.more(scratch)
                paths = (path for path in sorted(Path(scratch).rglob("*")) if path.is_file())
                files |= {path.relative_to(scratch).as_posix(): path.read_bytes() for path in paths}
        return folder.write(files)

    # --- the end of the run ------------------------------------------------------------------------------------------

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """A run that ends by an error leaves the save that is under way `LATE_S` seconds, without asking other ranks."""
        if (save := self.save) is None or save.ended.is_set():
            return
        if self.rank == 0:
            say(f"checkpoint {save.address} is still being saved: waiting for it, up to {LATE_S:.0f} s")
        if not save.ended.wait(LATE_S):
            save.folder.stopped.set()


def _portable(error: BaseException | None) -> BaseException | None:
    """An error as it can travel to other ranks."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
