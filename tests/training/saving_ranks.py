"""One process of several that save and resume together, started by a test: RANK RANKS FOLDER WHAT."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jala_ray import storage
from jala_ray.storage.s3 import S3Store
from jala_ray.storage.stores import LocalStore
from jala_ray.training import history, transfer
from jala_ray.training.saving import Saver
from jala_ray.training.staging import Staged, StagingBuffers
from jala_ray.training.task import NEWEST
from jala_ray.training.trainer import begins_with, restore, train
from jala_ray.types import StorageError
from tests.training.step_ranks import exact_run

HALF, STEPS = 3, 6
OPTIONS = storage.StorageOptions()
KINDS = {"model": {f"t{i}": torch.ones(100) for i in range(4)}}
"""Of which both of two ranks write a part."""


class CutOffError(Exception):
    """Stands for a kill after a checkpoint."""


def resized_run(root: Path, **more: Any) -> Any:
    """In float64, with a checkpoint half way."""
    return exact_run(root, 1, STEPS, settings={"train__checkpoint_every": HALF, "train__average": 0.9}, **more)


def cut_off(row: dict[str, Any], address: str) -> None:
    raise CutOffError


def half(rank: int, ranks: int, root: Path) -> None:
    """Up to the first checkpoint."""
    run = resized_run(root, rank=rank, world=ranks)
    run.committed = cut_off
    try:
        train(run)
    except CutOffError:
        return
    raise AssertionError("no checkpoint was told of")


def rest(rank: int, ranks: int, root: Path) -> None:
    train(resized_run(root, rank=rank, world=ranks))


def failing(rank: int, ranks: int, root: Path) -> None:
    """The store refuses rank 1's file for good: both ranks raise it, at the same call."""
    transfer.PAUSE_S = 0.01
    tried, write = 0, storage.Gathering.write

    def refused(folder: storage.Gathering, files: Any) -> Any:
        nonlocal tried
        tried += 1
        if rank == 1:
            raise StorageError("write", folder.uri, "to succeed", "No quota is left.")
        return write(folder, files)

    storage.Gathering.write = refused  # type: ignore[method-assign]
    raised = _raised(rank, ranks, str(root / "run"), OPTIONS)
    (root / f"said{rank}").write_text(json.dumps({"tried": tried, "raised": raised}))


def elsewhere(rank: int, ranks: int, root: Path) -> None:
    """Each rank has a disk of its own at the run's address, as one machine each would have."""
    transfer.PAUSE_S = 0.01
    raised = _raised(rank, ranks, str(root / f"disk{rank}" / "run"), storage.StorageOptions(patience_s=0.1))
    (root / f"said{rank}").write_text(json.dumps({"raised": raised}))


def _raised(rank: int, ranks: int, run: str, options: storage.StorageOptions) -> str:
    """Of a checkpoint of which both ranks have a part."""
    with Saver(run, options, keep=2, rank=rank, world=ranks) as saver:
        saver.begin(lambda: StagingBuffers(rank, ranks).take(KINDS, {}), history.address(run, 1), {"step": 1})
        try:
            saver.finish()
        except StorageError as error:
            return str(error)
    return ""


def tiny(rank: int, ranks: int, root: Path) -> None:
    """Ranks of which only the first has something to write."""
    with Saver(str(root / "run"), OPTIONS, keep=2, rank=rank, world=ranks) as saver:
        staged = Staged({"state.json": b"{}"} if rank == 0 else {})
        saver.now(lambda: staged, history.address(str(root / "run"), 1), {"step": 1})


def late(rank: int, ranks: int, root: Path) -> None:
    """All fail while rank 0 still writes: who has left, and was the checkpoint there by then?"""
    put = LocalStore.put

    def slow(store: LocalStore, path: str, data: memoryview) -> None:
        time.sleep(2.0 if rank == 0 else 0.0)
        put(store, path, data)

    LocalStore.put = slow  # type: ignore[method-assign]
    address = history.address(str(root / "run"), 1)
    with contextlib.suppress(CutOffError), Saver(str(root / "run"), OPTIONS, keep=2, rank=rank, world=ranks) as saver:
        saver.begin(lambda: StagingBuffers(rank, ranks).take(KINDS, {}), address, {"step": 1})
        raise CutOffError
    (root / f"said{rank}").write_text(json.dumps({"there": storage.is_committed(address)}))


def begin(rank: int, ranks: int, root: Path) -> None:
    """With another run's newest checkpoint, of which each rank finds another, as where one is committed in between."""
    run, took = resized_run(root, rank=rank, world=ranks), []
    before = root / f"before{rank}"
    storage.upload_dir(root / "weights", history.address(str(before), 1 + rank))
    run = replace(run, config=replace(run.config, init=str(before)))
    run.take_over = took.append  # type: ignore[method-assign]
    restore(run)
    (root / f"said{rank}").write_text(json.dumps({"took": [str(folder) for folder in took]}))


def resume(rank: int, ranks: int, root: Path) -> None:
    """What is read of a store to begin with, and who asks which checkpoint is the newest."""
    run, read, asked = json.loads((root / "run.json").read_text()), [], []
    stream, newest = S3Store.stream, history.newest

    def counted(store: S3Store, path: str, start: int = 0) -> Any:
        for chunk in stream(store, path, start):
            if not path.endswith(storage.COMMIT_FILE):
                read.append(len(chunk))
            yield chunk

    def asks(*args: Any) -> str | None:
        asked.append(args)
        return newest(*args)

    task = replace_run(root, run, rank, ranks)
    S3Store.stream, history.newest = counted, asks  # type: ignore[method-assign]
    found = begins_with(task)
    assert found is not None
    with transfer.own_copy(found, task.options) as folder:
        names = sorted(path.name for path in folder.iterdir())
        dist.barrier()
    (root / f"said{rank}").write_text(json.dumps({"read": sum(read), "asked": len(asked), "names": names}))


def replace_run(root: Path, stored: dict[str, Any], rank: int, ranks: int) -> Any:
    run = resized_run(root, rank=rank, world=ranks)
    return replace(
        run,
        config=replace(run.config, storage=replace(run.config.storage, endpoint_url=stored["endpoint"])),
        folder=stored["folder"],
        resume_from=NEWEST,
    )


def main(rank: int, ranks: int, root: Path, what: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/meet-{what}", rank=rank, world_size=ranks)
    try:
        {
            "half": half,
            "rest": rest,
            "failing": failing,
            "elsewhere": elsewhere,
            "tiny": tiny,
            "late": late,
            "begin": begin,
            "resume": resume,
        }[what](rank, ranks, root)
    finally:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
