"""One process of several that save and resume together, started by a test: RANK RANKS FOLDER WHAT."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jala_ray import storage
from jala_ray.storage.s3 import S3Store
from jala_ray.training import history, transfer
from jala_ray.training.saving import Saver
from jala_ray.training.staging import Staged, StagingBuffers
from jala_ray.training.task import NEWEST
from jala_ray.training.trainer import begins_with, train
from jala_ray.types import StorageError
from tests.training.step_ranks import exact_run

HALF, STEPS = 3, 6


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
    kinds = {"model": {f"t{i}": torch.ones(100) for i in range(4)}}
    with Saver(str(root / "run"), storage.StorageOptions(), keep=2, rank=rank, world=ranks) as saver:
        saver.begin(
            lambda: StagingBuffers(rank, ranks).take(kinds, {}), history.address(str(root / "run"), 1), {"step": 1}
        )
        raised = ""
        try:
            saver.finish()
        except StorageError as error:
            raised = str(error)
    (root / f"said{rank}").write_text(json.dumps({"tried": tried, "raised": raised}))


def tiny(rank: int, ranks: int, root: Path) -> None:
    """Ranks of which only the first has something to write."""
    with Saver(str(root / "run"), storage.StorageOptions(), keep=2, rank=rank, world=ranks) as saver:
        staged = Staged({"state.json": b"{}"} if rank == 0 else {})
        saver.now(lambda: staged, history.address(str(root / "run"), 1), {"step": 1})


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
        {"half": half, "rest": rest, "failing": failing, "tiny": tiny, "resume": resume}[what](rank, ranks, root)
    finally:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
