"""The motion tokenizer as a task of the trainer (method.md 2): the same over one rank or several, without Ray or files of videos.

The run folder ends with `tokenizer/`, a committed folder that pretraining takes, and `quality.json`. A collapse fails the run.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from jala_ray import storage
from jala_ray.config import TokenizerRunConfig
from jala_ray.config.evaluators import Evaluator
from jala_ray.parsing import to_dict
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.tokenizer.quality import check_collapse, measure_quality
from jala_ray.tokenizer.reconstruction import examples
from jala_ray.tokenizer.statistics import FeatureStats
from jala_ray.tokenizer.training import TokenizerLearner, batches, build_optimizer, held_out_losses, train_step
from jala_ray.training import history, transfer
from jala_ray.training.evaluating import Moment
from jala_ray.training.lease import guard
from jala_ray.training.staging import Staged
from jala_ray.training.task import Row, TrainingTask, Window
from jala_ray.training.trainer import train as train_tokenizer
from jala_ray.training.watch import waiting_for
from jala_ray.types import UserError

__all__ = ["RESULT", "Chunks", "TokenizerRun", "train_tokenizer"]

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


class HeldOutChunks(Evaluator):
    """Reconstruction of held-out chunks through their ids; on rank 0, which has all of them."""

    every_rank = False

    def __init__(self, features: torch.Tensor) -> None:
        self.features, self.name = features, "held-out chunks"

    @property
    def prefix(self) -> str:
        return ""

    def part(self, at: Moment) -> dict[str, float]:
        return held_out_losses(at.learner.export(), self.features)

    def figures(self, parts: Sequence[dict[str, float]]) -> dict[str, float]:
        return parts[0]


@dataclass(kw_only=True)
class TokenizerRun(TrainingTask[TokenizerRunConfig, TokenizerLearner]):
    """A motion tokenizer learns labelled chunks; every rank holds the same ones."""

    learner: TokenizerLearner = field(init=False)
    total_steps: int = field(init=False)
    train: Chunks
    held_out: Chunks
    """May be empty: quality is then measured on the training chunks, and says so."""

    def __post_init__(self) -> None:
        self.total_steps = self.config.train.steps
        self.losses = dict[str, float]()
        """Of the last step, over all ranks."""

    @property
    def log_every(self) -> int:
        return self.config.train.log_every

    @property
    def checkpoint_every(self) -> int:
        return self.config.checkpoint_every

    @property
    def keep(self) -> int:
        return self.config.keep

    @property
    def lr_setting(self) -> str:
        return "train.lr"

    def begin(self) -> None:
        """Build the tokenizer, with the statistics of its chunks. Raises `UserError` where there are none."""
        if not len(self.train):
            remedy = "The manifests need rows of split train with labelled chunks; see `jala validate`."
            raise UserError("manifests", self.config.manifests, "at least one labelled chunk", remedy)
        torch.manual_seed(self.config.seed)
        stats = FeatureStats.of(self.train.features)
        tokenizer = MotionTokenizer(self.config.model)
        tokenizer.set_stats(torch.from_numpy(stats.mean), torch.from_numpy(stats.std()))
        self.learner = TokenizerLearner(tokenizer, self.config.train.batch).to(self.device)
        self.optimizer = build_optimizer(self.learner, self.config.train)

    def stream(self, first: int) -> Iterator[np.ndarray]:
        return batches(len(self.train), self.config.train, self.rank, self.world, first)

    def step(self, model: nn.Module, share: np.ndarray, step: int) -> None:
        """Raises `UserError` on every rank alike, before the update, when the gradient is not finite."""
        chunks = torch.from_numpy(self.train.features[share]).to(self.device)
        self.losses = train_step(model, self.optimizer, {"features": chunks}, step, self.config.train)

    def row(self, window: Window, done: int) -> tuple[Row, list[Row]]:
        seconds = window.seconds / window.steps
        row = {"step": done, **self.losses, "step_s": seconds, "chunks_per_s": self.config.train.batch / seconds}
        return row | {"time_s": time.time()}, []

    def evaluators(self) -> Sequence[tuple[Evaluator, int]]:
        if not len(self.held_out):
            return ()
        features = torch.from_numpy(self.held_out.features).to(self.device)
        return ((HeldOutChunks(features), self.config.train.eval_every),)

    def moment(self, done: int) -> Moment:
        return Moment(done, self.learner, self.device, self.config, rank=self.rank, world=self.world)

    def finish(self, row: Row) -> Row:
        """The quality; nothing on other ranks. Raises `CodebookCollapse`."""
        if self.rank > 0:
            return {}
        with waiting_for("the quality of the tokenizer, measured and stored"):
            return finish(self.learner.export().eval(), self)

    def stage(self, done: int) -> Staged:
        """All of it on rank 0: some megabytes."""
        if self.rank > 0:
            return Staged({})
        rng = torch.get_rng_state()
        state = {"learner": self.learner.state_dict(), "optimizer": self.optimizer.state_dict(), "rng": rng}
        if self.device.type == "cuda":  # vectors that replace dead codes are drawn there
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        torch.save(state, copied := io.BytesIO())
        settings = json.dumps(to_dict(self.config), indent=1).encode()
        return Staged({"state.pt": copied.getvalue(), "config.json": settings})

    def load(self, folder: Path) -> int:
        state: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if "cuda_rng" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        return history.step_of(folder.name)


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
