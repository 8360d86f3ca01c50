"""One process of a tokenizer's run over several, started by a test: RANK RANKS FOLDER.

The run goes over RANKS ranks up to its first checkpoint and there is cut off; one rank fewer takes it to the end.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from jala_ray.config import LogConfig, StorageConfig, TokenizerConfig, TokenizerRunConfig, TokenizerTrainConfig
from jala_ray.training import setup
from jala_ray.training.parallel import Ddp
from jala_ray.training.tokenizer import Chunks, TokenizerRun, train_tokenizer
from tests.tokenizer.conftest import smooth_motions

CPU = torch.device("cpu")


class CutOffError(Exception):
    """Stands for a kill after a checkpoint."""


def chunks(count: int, seed: int) -> Chunks:
    features = smooth_motions(count, seed).float().numpy()
    return Chunks(features, np.ones(count, np.int64), np.zeros((count, 10), np.float32))


def make_run(root: Path, **more: Any) -> TokenizerRun:
    """10 chunks a step don't divide by three; some codes die and are replaced on the way."""
    config = TokenizerRunConfig(
        name="run",
        model=TokenizerConfig(width=16, levels=2, codes=16, decay=0.7, dead_code_threshold=0.5),
        train=TokenizerTrainConfig(steps=6, batch=10, lr=2e-3, log_every=1, eval_every=3),
        checkpoint_every=3,
        keep=1,
        allow_collapse=True,
        storage=StorageConfig(str(root)),
        log=LogConfig(tensorboard=False),
    )
    folder = setup.run_folder(config)
    given = {"train": chunks(64, seed=1), "held_out": chunks(8, seed=2), "device": CPU}
    return TokenizerRun(config=config, folder=folder, **given, **more)


def cut_off(row: dict[str, Any], address: str) -> None:
    raise CutOffError


def one_rank(rank: int, ranks: int, root: Path, committed: Any = None) -> None:
    dist.init_process_group("gloo", init_method=f"file://{root}/meet{ranks}", rank=rank, world_size=ranks)
    try:
        train_tokenizer(make_run(root, rank=rank, world=ranks, committed=committed, parallel=Ddp(CPU)))
    finally:
        dist.barrier()
        dist.destroy_process_group()


def main(rank: int, ranks: int, root: Path) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    try:
        one_rank(rank, ranks, root, cut_off)
    except CutOffError:
        if rank < ranks - 1:
            one_rank(rank, ranks - 1, root)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
