"""The training loop, top to bottom. It knows neither Ray nor files of videos: shares come in, checkpoints and metrics go out."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jala_ray import storage
from jala_ray.batch import Batch, PerceiverInputs
from jala_ray.config import RunConfig
from jala_ray.data.samples.assets import Assets
from jala_ray.data.samples.share import StepShare
from jala_ray.data.sampling.plan import rows_digest
from jala_ray.training import checkpoint, history, transfer, watch
from jala_ray.training.checkpoint import Position
from jala_ray.training.learner import Learner
from jala_ray.training.lease import Lease, guard
from jala_ray.training.log import RunLog
from jala_ray.training.optim import build_optimizer, clip_gradients, lr_factor, set_lr
from jala_ray.training.setup import storage_options
from jala_ray.training.watch import waiting_for
from jala_ray.types import DOMAINS, UserError

HEALTH = ("loss", "grad_norm")
EVENTS = ("log", "monitor", "validate", "checkpoint")
Inputs = TypeVar("Inputs", bound=PerceiverInputs)


@dataclass
class Run:
    """What the loop works with. Made by `launch.py` (Ray) and `local.py` (one process)."""

    config: RunConfig
    folder: str
    """The run folder, local or s3://."""
    learner: Learner
    """On its device."""
    assets: Assets
    device: torch.device
    total_steps: int
    steps_per_epoch: int
    shares: Callable[[int], Iterator[StepShare]]
    """`shares(first)`: this rank's shares from step `first` on."""
    validation: dict[str, Callable[[], Iterator[StepShare]]]
    """Held-out shares of this rank, a domain (lab, wild)."""
    resume_from: str | None = None
    rank: int = 0
    world: int = 1
    committed: Callable[[dict[str, Any], str], None] | None = None
    """Called on every rank after a checkpoint is in its place, with the latest metrics and its address."""
    lease: Lease | None = None
    """What holds the run folder for this attempt: asked on rank 0 before anything is written there."""
    wrap: Callable[[nn.Module], nn.Module] | None = None
    """DDP, where there are several ranks."""


@dataclass
class Meters:
    """Sums over this rank since the last log line."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    wait_s: float = 0.0
    errors: list[dict[str, Any]] = field(default_factory=list)
    rows: int = 0
    digest: int = 0
    """`plan.rows_digest` of the rows trained on."""
    quarantined_digest: int = 0
    """The same of the rows set aside."""
    steps: int = 0
    empty_steps: int = 0
    """Steps in which no rank had a row to train on."""
    started: float = field(default_factory=time.perf_counter)

    def count(self, share: StepShare, epoch: int) -> None:
        self.errors += share.errors
        self.rows += share.rows
        self.steps += 1
        trained = torch.cat([batch.plan_row[batch.plan_row >= 0] for batch in share.micro]).numpy()
        bad = np.array([error["plan_row"] for error in share.errors], np.int64)
        self.digest += rows_digest(epoch, trained.astype(np.int64))
        self.quarantined_digest += rows_digest(epoch, bad)

    def add(self, sums: dict[str, Tensor]) -> None:
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value


def train(run: Run) -> dict[str, Any]:
    """Train until `total_steps`; returns the last logged metrics. Resumes exactly from `resume_from`.

    Raises `UserError` when too many rows can't be read or the loss is no longer finite, before a checkpoint is written;
    `StoreUnavailable` when a store does not answer for longer than the run waits; `LeaseLost` when another attempt has taken over.
    """
    watch.configure(rank=run.rank, world=run.world, patience_s=run.config.log.waiting_s)
    optimizer = build_optimizer(run.learner, run.config.optim)
    with waiting_for("the checkpoint to begin with"):
        start = restore(run, optimizer)
    if run.rank > 0:
        return run_steps(run, optimizer, start, None)
    options, asked = storage_options(run.config), guard(run.lease)
    with RunLog(run.config, run.folder, start.step, run.total_steps, options, asked) as log:
        return run_steps(run, optimizer, start, log)


def restore(run: Run, optimizer: torch.optim.Optimizer) -> Position:
    """Fill learner and optimizer from the run's checkpoint or `config.init` (see `checkpoint.py` for the order).

    Raises `DamagedCheckpoint` when the bytes of the run's own checkpoint are not those that were written; it is set aside.
    """
    options = storage_options(run.config)
    needed = transfer.room(run.resume_from or run.config.init, options)
    with storage.scratch("resume", needed) as scratch:
        if run.resume_from is not None:
            stored = transfer.own_copy(run.resume_from, scratch, options)
            checkpoint.load_weights(run.learner, stored)
            checkpoint.load_optimizer(optimizer, stored)
            return checkpoint.read_position(stored)
        if run.config.init is not None:
            stored = transfer.local_copy(run.config.init, scratch, options)
            begun = checkpoint.take_over(run.learner, stored, run.config, run.assets)
            if run.rank == 0:
                print(f"init {run.config.init}: {begun}", flush=True)
    return Position()


def run_steps(run: Run, optimizer: torch.optim.Optimizer, start: Position, log: RunLog | None) -> dict[str, Any]:
    config, settings, learner = run.config, run.config.train, run.learner
    model = run.wrap(learner) if run.wrap is not None else learner
    meters, latest, faults = Meters(), dict[str, Any](), ErrorBudget(config)
    with waiting_for("the held-out rows"):
        held_out = read_held_out(run, meters)

    model.train()
    stream = run.shares(start.step)
    samples = torch.tensor(start.samples, device=run.device)
    for step in range(start.step, run.total_steps):
        waited = time.perf_counter()
        with waiting_for(f"the data of step {step + 1}"):
            share = next(stream)
        meters.wait_s += time.perf_counter() - waited
        if step == start.step:
            learner.check_columns(share.micro[0])
        meters.count(share, step // run.steps_per_epoch)

        # The step's loss is the sum over real sequences divided by their number over all ranks and micro-batches.
        micro = [to_device(batch, run.device) for batch in share.micro]
        real = reduce_sum(torch.stack([batch.weight.sum() for batch in micro]).sum(), run.world)
        scale = run.world / real.clamp(min=1.0)
        count = HostCopy(real)
        learner.objective.before_step(step / run.total_steps)
        set_lr(optimizer, config.optim.lr * lr_factor(step, run.total_steps, config.optim.warmup))
        with waiting_for(f"step {step + 1}, computed by all ranks"):
            for i, batch in enumerate(micro):
                last = i == len(micro) - 1
                with no_sync(model, not last), autocast(run.device, settings.precision):
                    out = model(batch)
                with no_sync(model, not last):
                    (out.loss * scale).backward()
                meters.add(out.sums)
            norm = clip_gradients(learner, config.optim.clip)
            if count.item():
                optimizer.step()
                learner.objective.after_step()
            else:  # momentum and weight decay would move weights that no row asked to move
                meters.empty_steps += 1
        optimizer.zero_grad(set_to_none=True)
        samples += real.long()
        done = step + 1

        # --- metrics, monitors, validation, checkpoint ---------------------------------------------------------------
        final = done == run.total_steps
        due = {name: final or done % getattr(settings, f"{name}_every") == 0 for name in EVENTS}
        if not any(due.values()):
            continue
        position = Position(done, done // run.steps_per_epoch, int(samples))
        with waiting_for(f"the other ranks' metrics of step {done}"):
            latest, errors = gather_metrics(meters, run, position, float(norm), optimizer)
        alive = all(math.isfinite(latest[name]) for name in HEALTH)  # else monitors would fail first, and hide why
        if due["monitor"] and alive and run.rank == 0:
            latest |= monitor(learner, micro[0], run, "monitor/")
        if due["validate"] and alive:
            with waiting_for(f"the validation after step {done}"):
                latest |= validate(learner, held_out, run)
        if log is not None:
            log.write(latest, errors)
        faults.check(latest)
        refuse_divergence(latest)
        if due["checkpoint"]:
            address = history.address(run.folder, done)
            if log is not None:
                with waiting_for(f"checkpoint {address} to be saved"):
                    log.sync()
                    write_checkpoint(address, run, optimizer, position)
            if run.committed is not None:
                with waiting_for(f"rank 0 to save checkpoint {address}, and Ray to hear of it"):
                    run.committed(latest, address)
        model.train()
        meters = Meters()
    return latest


def write_checkpoint(address: str, run: Run, optimizer: torch.optim.Optimizer, position: Position) -> None:
    """Rank 0 writes, verifies and commits; older ones go."""
    options = storage_options(run.config)
    with storage.scratch("checkpoint") as scratch:
        checkpoint.write(scratch, run.config, run.learner, run.assets, optimizer, position)
        transfer.save(scratch, address, options, run.lease)
    history.prune(run.folder, run.config.train.keep, options)


def read_held_out(run: Run, meters: Meters) -> dict[str, list[Batch]]:
    """This rank's held-out batches, read once and kept in memory; rows that can't be read are reported with the first log row."""
    batches: dict[str, list[Batch]] = {}
    for domain, shares in run.validation.items():
        batches[domain] = []
        for share in shares():
            batches[domain] += share.micro
            meters.errors += [error | {"split": "val"} for error in share.errors]
    return batches


# --- the parts -------------------------------------------------------------------------------------------------------


class HostCopy:
    """The value of a device tensor for the host, asked for early and read late, so that nothing waits for the device in between."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.arrived = value, None
        if value.device.type == "cuda":
            self.value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def item(self) -> float:
        if self.arrived is not None:
            self.arrived.synchronize()
        return float(self.value)


def to_device(batch: Inputs, device: torch.device) -> Inputs:
    return batch if device.type == "cpu" else batch.pin().to(device)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def no_sync(model: nn.Module, skip: bool) -> contextlib.AbstractContextManager[Any]:
    """DDP reduces gradients on the last micro-batch of a step only."""
    return model.no_sync() if skip and isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def reduce_sum(value: Tensor, world: int) -> Tensor:
    if world > 1:
        dist.all_reduce(value)
    return value


def gather_metrics(
    meters: Meters, run: Run, position: Position, norm: float, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One metrics row over all ranks since the last one, and their quarantined rows."""
    elapsed = time.perf_counter() - meters.started
    names = sorted(meters.sums)
    extra = (meters.wait_s, elapsed, meters.rows)
    own = [*(meters.sums[n] for n in names), *(torch.tensor(float(v)) for v in extra)]
    total = reduce_sum(torch.stack([v.to(run.device, torch.float64) for v in own]), run.world).tolist()
    sums, (wait, busy, rows) = dict(zip(names, total[:-3], strict=True)), total[-3:]
    seconds = busy / run.world
    errors = meters.errors
    if run.world > 1:
        gathered: list[Any] = [None] * run.world
        dist.all_gather_object(gathered, errors)
        errors = [error for part in gathered for error in part]
    row: dict[str, Any] = {"step": position.step, "epoch": position.epoch, "samples": position.samples}
    row |= term_means(sums)
    weights = run.learner.objective.term_weights()
    row["loss"] = sum(weights[n] * sums[f"{n}/sum"] for n in weights) / max(sums["samples"], 1.0)
    row |= {"lr": optimizer.param_groups[0]["lr"], "grad_norm": norm}
    row |= {"data_wait": wait / busy, "step_s": seconds / meters.steps}
    row |= {f"{n}_per_s": sums[n] / seconds for n in ("samples", "chunks", "tokens")}
    row["padding"] = 1.0 - sums["tokens"] / sums["slots"]
    own_digests = torch.tensor([_wrapped(meters.digest), _wrapped(meters.quarantined_digest)], device=run.device)
    digests = [f"{digest % 2**64:016x}" for digest in reduce_sum(own_digests, run.world).tolist()]
    row |= dict(zip(("rows_digest", "quarantined_digest"), digests, strict=True))
    row |= {"rows": int(rows), "quarantined": sum("split" not in e for e in errors)}
    row |= {"empty_steps": meters.empty_steps, "time_s": time.time()}
    return row, errors


def _wrapped(value: int) -> int:
    """`value` modulo 2**64, signed, as a tensor holds it."""
    return (value + 2**63) % 2**64 - 2**63


def term_means(sums: dict[str, float], prefix: str = "") -> dict[str, Any]:
    """Means of each loss term over the sequences that have it (null where none has), and the share of codes predicted right."""
    terms = sorted(name.removesuffix("/sum") for name in sums if name.endswith("/sum"))
    row: dict[str, Any] = {}
    for name in terms:
        count = sums[f"{name}/count"]
        row[f"{prefix}loss_{name}"] = sums[f"{name}/sum"] / count if count else None
    if "mcp_tokens" in sums:
        row[f"{prefix}mcp_accuracy"] = sums["mcp_correct"] / sums["mcp_tokens"] if sums["mcp_tokens"] else None
    return row


def monitor(learner: Learner, batch: Batch, run: Run, prefix: str) -> dict[str, float]:
    """The objective's health figures on one batch of this rank."""
    learner.eval()
    with torch.no_grad(), autocast(run.device, run.config.train.precision):
        return {prefix + name: value for name, value in learner.monitors(batch).items()}


@torch.no_grad()
def validate(learner: Learner, held_out: dict[str, list[Batch]], run: Run) -> dict[str, Any]:
    """Loss terms and monitors on held-out rows, a domain, with the same draws every time. Collective over ranks."""
    learner.eval()
    scores: dict[str, Any] = {}
    for domain in (d for d in DOMAINS if d in held_out):
        meters = Meters()
        for batch in held_out[domain]:
            with autocast(run.device, run.config.train.precision):
                meters.add(learner(to_device(batch, run.device)).sums)
        names = sorted(meters.sums)
        total = reduce_sum(torch.stack([meters.sums[n] for n in names]), run.world).tolist()
        scores |= term_means(dict(zip(names, total, strict=True)), f"val/{domain}/")
        if run.rank == 0:
            first = to_device(held_out[domain][0], run.device)
            scores |= monitor(learner, first, run, f"val/{domain}/monitor/")
    return scores


def refuse_divergence(row: dict[str, Any]) -> None:
    """Raises `UserError` on every rank alike, before a checkpoint of NaN replaces a good one."""
    for name in HEALTH:
        if not math.isfinite(row[name]):
            remedy = "Lower optim.lr, or continue from an older checkpoint; the run's checkpoints are from before."
            raise UserError(name, row[name], f"a finite number at step {row['step']}", remedy)


class ErrorBudget:
    """Stops a run whose share of unreadable rows grows past the setting."""

    def __init__(self, config: RunConfig) -> None:
        self.limit, self.least = config.data.max_error_share, config.data.min_rows_for_share
        self.recent: deque[tuple[int, int]] = deque(maxlen=100)

    def check(self, row: dict[str, Any]) -> None:
        """Raises `UserError` on every rank alike: the row is the same everywhere."""
        self.recent.append((row["quarantined"], row["rows"]))
        bad, rows = (sum(column) for column in zip(*self.recent, strict=True))
        if rows >= self.least and bad > self.limit * rows:
            expected = f"<= data.max_error_share = {self.limit:.1%} of {rows} rows"
            raise UserError("quarantined rows", bad, expected, "See errors.jsonl in the run folder for each reason.")
