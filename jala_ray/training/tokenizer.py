"""The run that trains a motion tokenizer (METHOD 2): resumable, over one or several ranks, without Ray or files of videos.

The run folder ends with `tokenizer/`, a committed folder that pretraining takes, and `quality.json`. A collapse fails the run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from jala_ray import storage
from jala_ray.config import TokenizerRunConfig
from jala_ray.parsing import to_dict
from jala_ray.storage import StorageOptions
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.tokenizer.quality import check_collapse, measure_quality
from jala_ray.tokenizer.reconstruction import examples
from jala_ray.tokenizer.statistics import FeatureStats
from jala_ray.tokenizer.training import TokenizerLearner, batches, build_optimizer, held_out_losses, train_step
from jala_ray.training import history, transfer, watch
from jala_ray.training.lease import Lease, guard
from jala_ray.training.log import RunLog
from jala_ray.training.watch import waiting_for
from jala_ray.types import UserError

RESULT = "tokenizer"
"""Folder of the finished tokenizer inside the run folder."""


@dataclass
class Chunks:
    """Labelled chunks: raw features (C, 15, 99), side (C,) of `Hand`, MANO shape (C, 10)."""

    features: np.ndarray
    side: np.ndarray
    beta: np.ndarray

    def __len__(self) -> int:
        return len(self.features)


@dataclass
class TokenizerRun:
    """What the loop works with; every rank holds the same chunks."""

    config: TokenizerRunConfig
    folder: str
    options: StorageOptions
    train: Chunks
    held_out: Chunks
    """May be empty: quality is then measured on the training chunks, and says so."""
    device: torch.device
    rank: int = 0
    world: int = 1
    lease: Lease | None = None
    """Rank 0's hold of the run folder."""
    committed: Callable[[dict[str, Any], str], None] | None = None
    wrap: Callable[[nn.Module], nn.Module] | None = None


def train_tokenizer(run: TokenizerRun) -> dict[str, Any]:
    """Train to the last step, measure, and commit `tokenizer/`; returns the quality. Continues the folder's newest checkpoint.

    Raises `CodebookCollapse`; `UserError` without chunks or when training diverges; `DamagedCheckpoint`, as `loop.restore` does;
    `LeaseLost` when another attempt has taken over.
    """
    settings = run.config.train
    watch.configure(rank=run.rank, world=run.world, patience_s=run.config.log.waiting_s)
    if not len(run.train):
        remedy = "The manifests need rows of split train with labelled chunks; see `jala validate`."
        raise UserError("manifests", run.config.manifests, "at least one labelled chunk", remedy)

    # --- model, or what an earlier attempt left ----------------------------------------------------------------------
    torch.manual_seed(run.config.seed)
    stats = FeatureStats.of(run.train.features)
    tokenizer = MotionTokenizer(run.config.model)
    tokenizer.set_stats(torch.from_numpy(stats.mean), torch.from_numpy(stats.std()))
    learner = TokenizerLearner(tokenizer, settings.batch).to(run.device)
    optimizer = build_optimizer(learner, settings)
    start, found = 0, history.newest(run.folder, run.options)
    if found is not None:
        start = history.step_of(found)
        with waiting_for(f"checkpoint {found} to begin with"):
            load_state(found, learner, optimizer, run)
    if run.rank > 0:
        return run_steps(run, learner, optimizer, start, None)
    with RunLog(run.config, run.folder, start, settings.steps, run.options, guard(run.lease)) as log:
        return run_steps(run, learner, optimizer, start, log)


def run_steps(
    run: TokenizerRun, learner: TokenizerLearner, optimizer: torch.optim.Optimizer, start: int, log: RunLog | None
) -> dict[str, Any]:
    config, settings = run.config, run.config.train
    model = run.wrap(learner) if run.wrap is not None else learner
    features = torch.from_numpy(run.train.features)
    validation = torch.from_numpy(run.held_out.features).to(run.device)
    order = batches(len(run.train), settings, run.rank, run.world, start)
    row: dict[str, Any] = {}
    since, logged = time.perf_counter(), start
    for step, indices in enumerate(order, start):
        done = step + 1
        with waiting_for(f"step {done}, computed by all ranks"):
            losses = train_step(model, optimizer, {"features": features[indices].to(run.device)}, step, settings)
        final = done == settings.steps
        evaluate = (final or done % settings.eval_every == 0) and len(validation) > 0
        if log is not None and (evaluate or final or done % settings.log_every == 0):
            seconds = (time.perf_counter() - since) / (done - logged)
            row = {"step": done, **losses, "step_s": seconds, "chunks_per_s": settings.batch / seconds}
            row["time_s"] = time.time()
            since, logged = time.perf_counter(), done
            if evaluate:
                row |= held_out_losses(learner.export(), validation)
            log.write(row, [])
        if final or done % config.checkpoint_every == 0:
            address = history.address(run.folder, done)
            if log is not None:
                with waiting_for(f"checkpoint {address} to be saved"):
                    log.sync()
                    save_state(address, learner, optimizer, run)
            if run.committed is not None:
                with waiting_for(f"rank 0 to save checkpoint {address}, and Ray to hear of it"):
                    run.committed(row, address)
    if run.rank > 0:
        return {}
    with waiting_for("the quality of the tokenizer, measured and stored"):
        return finish(learner.export().eval(), run)


def finish(tokenizer: MotionTokenizer, run: TokenizerRun) -> dict[str, Any]:
    """Measure, fail on collapse, and commit the result."""
    measured = run.held_out if len(run.held_out) else run.train
    chunks = (torch.from_numpy(a) for a in (measured.features, measured.side, measured.beta))
    features, side, beta = chunks
    quality = measure_quality(tokenizer, features, side, beta=beta)
    quality["held_out"] = len(run.held_out) > 0
    shown = {"examples": examples(tokenizer, features, side, beta)}
    guard(run.lease)()
    for name, value in (("quality.json", json.dumps(quality, indent=1)), ("reconstructions.json", json.dumps(shown))):
        storage.write_bytes(storage.join(run.folder, name), value.encode(), options=run.options)
    if not run.config.allow_collapse:
        check_collapse(quality)
    address = storage.join(run.folder, RESULT)
    if not storage.is_committed(address, run.options):
        with storage.scratch("tokenizer") as scratch:
            tokenizer.save(scratch, quality)
            transfer.save(scratch, address, run.options, run.lease)
    return quality


def save_state(address: str, learner: nn.Module, optimizer: torch.optim.Optimizer, run: TokenizerRun) -> None:
    """Commit what a resume needs; older checkpoints go."""
    state = {"learner": learner.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    if run.device.type == "cuda":  # vectors that replace dead codes are drawn there
        state["cuda_rng"] = torch.cuda.get_rng_state(run.device)
    with storage.scratch("checkpoint") as folder:
        torch.save(state, folder / "state.pt")
        (folder / "config.json").write_text(json.dumps(to_dict(run.config), indent=1))
        transfer.save(folder, address, run.options, run.lease)
    history.prune(run.folder, run.config.keep, run.options)


def load_state(address: str, learner: nn.Module, optimizer: torch.optim.Optimizer, run: TokenizerRun) -> None:
    with storage.scratch("resume", transfer.room(address, run.options)) as scratch:
        folder = transfer.own_copy(address, scratch, run.options)
        state: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
    learner.load_state_dict(state["learner"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    if "cuda_rng" in state and run.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda_rng"], run.device)
