"""The same trainer without Ray, in one process: `python -m jala_ray.training.local PRESET --dotted.key value`.

PRESET is a preset's name or a `config.json`; dotted keys take tyro. A torch DataLoader reads the rows. Over a manifest that takes PyAV
and pyarrow; from a cache that holds everything (`data.cache`, made by `jala cache --store all`) the run imports only torch,
transformers, einops, safetensors and numpy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from jala_ray.config import RunConfig, TokenizerRunConfig
from jala_ray.data.samples.assets import Assets
from jala_ray.data.samples.share import StepShare
from jala_ray.data.samples.steps import StepBuilder
from jala_ray.presets import configuration
from jala_ray.training import history, setup
from jala_ray.training.build import build_learner, make_deterministic
from jala_ray.training.device import best_device
from jala_ray.training.interrupts import guarded
from jala_ray.training.pretraining import Pretraining
from jala_ray.training.trainer import train
from jala_ray.types import SPLITS, DamagedCheckpoint, JalaError

if TYPE_CHECKING:
    from jala_ray.training.tokenizer import TokenizerRun


class Shares(IterableDataset[StepShare | Tensor | JalaError]):
    """Steps `first` .. `last - 1` of a plan; DataLoader workers take turns, so that the order is the plan's.

    A worker's shares are parcels, one tensor each: torch opens a file for every tensor that leaves a process, and a share has 25 for each
    micro-batch. An error that explains itself comes as the last item: torch would make a text of it on its way out of a worker.
    """

    def __init__(self, builder: StepBuilder, first: int, last: int) -> None:
        self.builder, self.first, self.last = builder, first, last

    def __iter__(self) -> Iterator[StepShare | Tensor | JalaError]:
        info = get_worker_info()
        start, stride = (info.id, info.num_workers) if info is not None else (0, 1)
        shares = self.builder.stream(range(self.first + start, self.last, stride), rank=0, world=1)
        try:
            yield from shares if info is None else (share.parcel().tensor() for share in shares)
        except JalaError as error:
            yield error


def loader(builder: StepBuilder, first: int, last: int, workers: int) -> Iterator[StepShare]:
    """Shares in step order. `batch_size=None`: a share is a batch already."""
    context = "forkserver" if workers else None  # forked workers would share decoder and S3 state
    shares = Shares(builder, first, last)
    for share in DataLoader(shares, batch_size=None, num_workers=workers, multiprocessing_context=context):
        if isinstance(share, JalaError):
            raise share
        yield StepShare.from_buffer(share.numpy().data) if isinstance(share, Tensor) else share


def run_local(config: RunConfig, device: torch.device | None = None) -> dict[str, Any]:
    """Train in this process; returns the last metrics. Continues the run folder's newest whole checkpoint."""
    config = setup.absolute(config)
    device = device or best_device()
    if config.train.deterministic:
        make_deterministic()
    with setup.prepared(config) as ready:
        while True:
            try:
                run = make_run(config, ready, device)
                print(begins(run), flush=True)
                return train(run)
            except DamagedCheckpoint as error:
                print(error, flush=True)  # set aside by now: the next turn finds an older one


def run_local_tokenizer(config: TokenizerRunConfig, device: torch.device | None = None) -> TokenizerRun:
    """Train a motion tokenizer in this process; returns the run with its chunks. A folder with checkpoints is continued."""
    from jala_ray.data.samples.chunks import read_chunks  # reads manifests
    from jala_ray.training.tokenizer import Chunks, TokenizerRun, train_tokenizer

    config = setup.absolute(config)
    folder, device = setup.run_folder(config), device or best_device()
    with setup.prepared_tokenizer(config) as ready:
        chunks, held_out = (Chunks(**read_chunks(ready.rows[split])) for split in SPLITS)
        run = TokenizerRun(
            config=config, folder=folder, device=device, train=chunks, held_out=held_out, lease=ready.lease
        )
        train_tokenizer(run)
    return run


def begins(run: Pretraining) -> str:
    """One line, before the first step: that may take minutes to come."""
    size = sum(p.numel() for p in run.learner.parameters()) / 1e6
    start = 0 if run.resume_from is None else history.step_of(run.resume_from)
    how = f"{run.total_steps} steps from step {start}, {size:.1f} M parameters on {run.device}"
    return f"{run.folder}: {how}; a line every {run.config.train.log_every} steps"


def make_run(config: RunConfig, ready: setup.Prepared, device: torch.device) -> Pretraining:
    """The run of this process, from the newest checkpoint on."""
    options, folder, plans = setup.storage_options(config), setup.run_folder(config), ready.plans
    assets, workers = Assets.open(ready.assets, options), config.data.workers

    def held_out(builder: StepBuilder) -> Iterator[StepShare]:
        return loader(builder, 0, builder.plan.steps_per_epoch, workers)

    return Pretraining(
        config=config,
        folder=folder,
        learner=build_learner(config, assets).to(device),
        assets=assets,
        device=device,
        total_steps=plans.total_steps,
        steps_per_epoch=plans.train.plan.steps_per_epoch,
        shares=lambda first: loader(plans.train, first, plans.total_steps, workers),
        validation={domain: (lambda b=b: held_out(b)) for domain, b in plans.held_out.items()},
        resume_from=history.newest(folder, options),
        lease=ready.lease,
    )


def main(words: Sequence[str]) -> int:
    run_local(configuration(words))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
