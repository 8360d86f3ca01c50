"""Pretraining as a task of the trainer: batches of sequences, an objective's loss terms, AdamW, sums over ranks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jala_ray.batch import Batch
from jala_ray.config import RunConfig
from jala_ray.config.evaluators import Evaluator, evaluators_of
from jala_ray.data.samples.assets import Assets
from jala_ray.data.samples.share import StepShare
from jala_ray.data.sampling.plan import rows_digest
from jala_ray.training import average, checkpoint, history
from jala_ray.training.ahead import Arriving, ahead
from jala_ray.training.average import Average
from jala_ray.training.checkpoint import Position
from jala_ray.training.costs import RankCosts, figures
from jala_ray.training.device import HostCopy, autocast, compiles, gather, peak_memory_gb, reduce_sum
from jala_ray.training.evaluating import Moment
from jala_ray.training.flops import Prices, Workload
from jala_ray.training.footprint import computed_gb
from jala_ray.training.learner import Learner, StepOutput, means
from jala_ray.training.memory import Room
from jala_ray.training.moments import load_moments
from jala_ray.training.optim import build_optimizer, clip_gradients, lr_factor, set_lr
from jala_ray.training.peaks import peak_tflops
from jala_ray.training.staging import Staged, StagingBuffers
from jala_ray.training.task import Row, TrainingTask, Window
from jala_ray.training.watch import waiting_for


@dataclass
class Meters:
    """Sums over this rank since the last row."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    errors: list[Row] = field(default_factory=list)
    rows: int = 0
    digest: int = 0
    """`plan.rows_digest` of the rows trained on."""
    quarantined_digest: int = 0
    """The same of the rows set aside."""
    empty_steps: int = 0
    """Steps in which no rank had a row to train on."""
    flops: list[float] = field(default_factory=list)
    """Needed by this rank's share, by step."""

    def count(self, share: StepShare, epoch: int) -> None:
        self.errors += share.errors
        self.rows += share.rows
        trained = torch.cat([batch.plan_row[batch.plan_row >= 0] for batch in share.micro]).numpy()
        bad = np.array([error["plan_row"] for error in share.errors], np.int64)
        self.digest += rows_digest(epoch, trained.astype(np.int64))
        self.quarantined_digest += rows_digest(epoch, bad)

    def add(self, sums: dict[str, Tensor]) -> None:
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value


@dataclass(kw_only=True)
class Pretraining(TrainingTask[RunConfig, Learner]):
    """A vision-language-action model learns by its objective."""

    assets: Assets
    steps_per_epoch: int
    shares: Callable[[int], Iterator[StepShare]]
    """`shares(first)`: this rank's shares from step `first` on."""
    validation: dict[str, Callable[[], Iterator[StepShare]]]
    """Held-out shares of this rank, by domain."""

    def __post_init__(self) -> None:
        self.meters, self.held_out = Meters(), dict[str, list[Batch]]()
        self.batch: Batch | None = None
        self.norm = torch.zeros(())
        self.room = Room(self.config.data.pad_multiple, self.rank, self.parallel.repeats)
        self.computed_gb: float | None = None
        self.average: Average | None = None

    @property
    def init(self) -> str | None:
        """Of a run folder its newest checkpoint."""
        return None if self.config.init is None else history.resolve(self.config.init, self.options)

    @property
    def log_every(self) -> int:
        return self.config.train.log_every

    @property
    def checkpoint_every(self) -> int:
        return self.config.train.checkpoint_every

    @property
    def keep(self) -> int:
        return self.config.train.keep

    @property
    def error_limit(self) -> tuple[str, float, int]:
        return "data.max_error_share", self.config.data.max_error_share, self.config.data.min_rows_for_share

    @property
    def lr_setting(self) -> str:
        return "optim.lr"

    def begin(self) -> None:
        self.learner.objective.before_run(self.total_steps)
        self.prices, self.peak = Prices.of(self.learner), peak_tflops(self.device, self.config.log.peak_tflops)
        # A process on a CPU has more in its memory than training.
        self.computed_gb = computed_gb(self.learner, self.config) if self.device.type == "cuda" else None
        self.parallel.shard(self.learner)
        self.optimizer = build_optimizer(self.learner, self.config.optim)
        self.samples = torch.zeros((), dtype=torch.int64, device=self.device)

    def take_over(self, folder: Path) -> None:
        begun = checkpoint.take_over(self.learner, folder, self.config, self.assets)
        if self.rank == 0:
            print(f"init {self.init}: {begun}", flush=True)

    def settle(self) -> None:
        train = self.config.train
        if train.average and self.average is None:
            self.average = Average(self.learner, train.average)
        self.learner.settle(precision=train.precision, compiled=compiles(train.compile, self.device))

    def read_held_out(self) -> None:
        """This rank's held-out batches, kept in memory; rows that can't be read are reported with the first row."""
        for domain, shares in self.validation.items():
            self.held_out[domain] = []
            for share in shares():
                self.held_out[domain] += share.micro
                self.meters.errors += [error | {"split": "val"} for error in share.errors]

    def stream(self, first: int) -> Iterator[Arriving]:
        return ahead(self.shares(first), self.device)

    def step(self, model: nn.Module, share: Arriving, step: int) -> None:
        """Raises `UserError`, at the first step, for a batch that lacks what the objective needs."""
        config, objective, host = self.config, self.learner.objective, share.host
        if self.batch is None:
            self.learner.check_columns(host.micro[0])
        self.meters.count(host, step // self.steps_per_epoch)
        self.meters.flops.append(sum(self.prices.needs(Workload.of(batch)).total for batch in host.micro))

        # The step's loss is the sum over real sequences divided by their number over all ranks and micro-batches.
        own = torch.stack([batch.weight.sum() for batch in host.micro]).sum()
        with waiting_for("the other ranks to have their data"):
            real = reduce_sum(torch.full((), float(own), dtype=own.dtype, device=self.device), self.world)
        scale = self.world / real.clamp(min=1.0)
        count = HostCopy(real)
        self.clock.lap("data")
        micro = share.batches()
        self.clock.lap("copy")

        objective.before_step(step / self.total_steps)
        set_lr(self.optimizer, config.optim.lr * lr_factor(step, self.total_steps, config.optim.warmup))
        before = dict(self.meters.sums)
        # Where other ranks make more passes and each needs all ranks: first those that count nothing.
        idle = [without_weight(micro[0])] * (self.parallel.agreed(len(micro)) - len(micro))

        def passes(watched: Any, batch: Batch, number: int, of: int) -> None:
            with self.parallel.accumulates(last=number == of):
                self.passes(watched, batch, scale, f"micro-batch {number} of {of}", number == of)
            if number == len(idle):
                self.forget(before)

        self.room.attempts(model, idle + micro, passes, lambda: self.drop(before), reduces=self.world > 1)
        with waiting_for("the device, and the optimizer"):
            self.update(bool(count.item()), step + 1)
        self.samples += real.long()
        self.batch = micro[0]
        self.clock.lap("optimizer")

    def passes(self, model: Callable[[Batch], StepOutput], batch: Batch, scale: Tensor, name: str, last: bool) -> None:
        """One micro-batch forward and backward: its gradients are added, over all ranks in the step's last, and its sums counted."""
        with waiting_for(f"the forward pass of {name}"), autocast(self.device, self.config.train.precision):
            out = model(batch)
        self.clock.lap("forward")
        with waiting_for(f"the backward pass of {name}" + (", and the sum over ranks" if last else "")):
            (out.loss * scale).backward()
            if last:
                self.parallel.reduce()
        self.clock.lap("backward")
        self.meters.add(out.sums)

    def update(self, any_row: bool, done: int) -> None:
        """Move the weights by the step's gradients, which are gone then; `done` steps are made by then."""
        self.norm = clip_gradients(self.learner, self.config.optim.clip)
        if any_row:
            self.optimizer.step()
            self.learner.objective.after_step()
            if self.average is not None:
                self.average.update(done)
        else:  # momentum and weight decay would move weights that no row asked to move
            self.meters.empty_steps += 1
        self.optimizer.zero_grad(set_to_none=True)

    def drop(self, sums: dict[str, Tensor]) -> None:
        """Forget the passes of this step, before which the meters had `sums`."""
        self.optimizer.zero_grad(set_to_none=True)
        self.forget(sums)

    def forget(self, sums: dict[str, Tensor]) -> None:
        """The same, without gradients."""
        self.meters.sums = dict(sums)
        self.learner.objective.forget_step()

    def row(self, window: Window, done: int) -> tuple[Row, list[Row]]:
        meters, self.meters = self.meters, Meters()
        costs = RankCosts(meters.flops, window.parts, window.other_s, peak_memory_gb(self.device))
        extra = {"wait": window.wait_s, "busy": window.seconds, "rows": meters.rows}
        sums = self._total(meters.sums | {name: torch.tensor(float(value)) for name, value in extra.items()})
        seconds, position = sums["busy"] / self.world, self.position(done)
        everyone = gather((meters.errors, costs), self.world)
        errors = [error for part, _ in everyone for error in part]
        row: Row = {**vars(position), **means(sums), "loss": sums["loss"] / max(sums["samples"], 1.0)}
        row |= {"lr": float(self.optimizer.param_groups[0]["lr"]), "grad_norm": float(self.norm)}
        row |= {"data_wait": sums["wait"] / sums["busy"], "step_s": seconds / window.steps}
        row |= {f"{n}_per_s": sums[n] / seconds for n in ("samples", "chunks", "tokens")}
        row |= figures([costs for _, costs in everyone], seconds, self.peak)
        if self.computed_gb is not None:
            row["memory_computed_gb"] = self.computed_gb
        row["padding"] = 1.0 - sums["tokens"] / sums["slots"]
        digests = [_wrapped(meters.digest), _wrapped(meters.quarantined_digest)]
        digests = reduce_sum(torch.tensor(digests, device=self.device), self.world).tolist()
        row |= {
            name: f"{d % 2**64:016x}" for name, d in zip(("rows_digest", "quarantined_digest"), digests, strict=True)
        }
        row |= {"rows": int(sums["rows"]), "quarantined": sum("split" not in e for e in errors)}
        row |= {"empty_steps": meters.empty_steps, "time_s": time.time()}
        return row, errors

    def _total(self, own: dict[str, Tensor]) -> dict[str, float]:
        """Over all ranks, which have the same names."""
        names = sorted(own)
        stacked = torch.stack([own[n].to(self.device, torch.float64) for n in names])
        return dict(zip(names, reduce_sum(stacked, self.world).tolist(), strict=True))

    def position(self, done: int) -> Position:
        return Position(done, done // self.steps_per_epoch, int(self.samples))

    def evaluators(self) -> Sequence[tuple[Evaluator, int]]:
        return evaluators_of(self.config)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        with contextlib.nullcontext() if self.average is None else self.average.in_place(), self.parallel.whole():
            yield

    def moment(self, done: int) -> Moment:
        return Moment(
            step=done,
            learner=self.learner,
            device=self.device,
            config=self.config,
            assets=self.assets,
            rank=self.rank,
            world=self.world,
            held_out=self.held_out,
            batch=self.batch,
        )

    @cached_property
    def images(self) -> StagingBuffers:
        return StagingBuffers(self.rank, self.world, pinned=self.device.type == "cuda")

    def stage(self, done: int) -> Staged:
        tensors = checkpoint.tensors(self.learner, self.optimizer, self.average)
        facts = checkpoint.facts(self.config, self.learner, self.position(done))
        return self.images.take(tensors, facts, self.assets.save)

    def load(self, folder: Path) -> int:
        checkpoint.load_weights(self.learner, folder)
        load_moments(self.optimizer, self.learner, folder)
        if self.config.train.average:
            self.average = Average(self.learner, self.config.train.average, average.read(folder))
        position = checkpoint.read_position(folder)
        self.samples += position.samples
        return position.step


def without_weight(batch: Batch) -> Batch:
    """The same passes, with nothing to learn."""
    return replace(batch, weight=torch.zeros_like(batch.weight))


def _wrapped(value: int) -> int:
    """`value` modulo 2**64, signed, as a tensor holds it."""
    return (value + 2**63) % 2**64 - 2**63
