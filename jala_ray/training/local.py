"""The same loop without Ray, in one process: `python -m jala_ray.training.local PRESET --dotted.key value`.

PRESET is a preset's name or a `config.json`; dotted keys take tyro. A torch DataLoader reads the rows. Over a manifest that takes PyAV
and pyarrow; from a cache that holds everything (`data.cache`, made by `jobs/cache.py --store all`) the run imports only torch,
transformers, einops, safetensors and numpy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from jala_ray.config import RunConfig
from jala_ray.data.assets import Assets
from jala_ray.data.steps import StepBuilder, StepShare
from jala_ray.presets import configuration
from jala_ray.training import history, setup
from jala_ray.training.build import build_learner, make_deterministic
from jala_ray.training.loop import Run, train
from jala_ray.types import JalaError


class Shares(IterableDataset[StepShare]):
    """Steps `first` .. `last - 1` of a plan; DataLoader workers take turns, so that the order is the plan's."""

    def __init__(self, builder: StepBuilder, first: int, last: int) -> None:
        self.builder, self.first, self.last = builder, first, last

    def __iter__(self) -> Iterator[StepShare]:
        info = get_worker_info()
        start, stride = (info.id, info.num_workers) if info is not None else (0, 1)
        yield from self.builder.stream(range(self.first + start, self.last, stride), rank=0, world=1)


def loader(builder: StepBuilder, first: int, last: int, workers: int) -> Iterator[StepShare]:
    """Shares in step order. `batch_size=None`: a share is a batch already."""
    context = "forkserver" if workers else None  # forked workers would share decoder and S3 state
    return iter(
        DataLoader(
            Shares(builder, first, last),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context=context,
        )
    )


def run_local(config: RunConfig, device: torch.device | None = None) -> dict[str, Any]:
    """Train in this process; returns the last metrics. Continues the run folder's newest checkpoint."""
    config = setup.absolute(config)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.train.deterministic:
        make_deterministic()
    address = setup.prepare(config)
    options, folder = setup.storage_options(config), setup.run_folder(config)
    assets = Assets.open(address, options)
    plans, workers = setup.plans(config, address), config.data.workers
    setup.claim_plan(config, plans)

    def held_out(builder: StepBuilder) -> Iterator[StepShare]:
        return loader(builder, 0, builder.plan.steps_per_epoch, workers)

    return train(
        Run(
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
        )
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        run_local(configuration(sys.argv[1:]))
    except JalaError as error:
        sys.exit(f"error: {error}")
