"""The training loop, top to bottom, for every task. It knows neither Ray nor what is learned: shares come in, checkpoints go out."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from jala_ray.training import history, transfer, watch
from jala_ray.training.device import gather
from jala_ray.training.evaluating import Evaluations
from jala_ray.training.lease import guard
from jala_ray.training.log import RunLog
from jala_ray.training.notice import StoppedByNotice
from jala_ray.training.saving import Saver
from jala_ray.training.task import NEWEST, Row, TrainingTask, Window
from jala_ray.training.trace import traced
from jala_ray.training.watch import waiting_for
from jala_ray.types import UserError

HEALTH = ("loss", "grad_norm")


def train(task: TrainingTask[Any, Any]) -> Row:
    """Train to the last step; returns what the task's `finish` gives. Goes on exactly where the folder's newest checkpoint is.

    Raises `UserError` when too many rows can't be read or the loss is no longer finite, before a checkpoint is written;
    `StoreUnavailable` when a store does not answer for longer than the run waits; `LeaseLost` when another attempt has taken over;
    `DamagedCheckpoint` for a checkpoint that is set aside by now; `StoppedByNotice` on every rank alike after a notice, when all is saved.
    """
    watch.configure(rank=task.rank, world=task.world, patience_s=task.config.log.waiting_s)
    task.begin()
    with waiting_for("the checkpoint to begin with"):
        start = restore(task)
    if task.rank > 0:
        return run_steps(task, start, None)
    kept = guard(task.lease)
    with RunLog(task.config, task.folder, start, task.total_steps, task.options, kept, task.publish) as log:
        log.begun(task.world)
        return run_steps(task, start, log)


def restore(task: TrainingTask[Any, Any]) -> int:
    """Fill the task from its folder's checkpoint, or begin with another run's weights (`init`); the steps that are done.

    Raises `DamagedCheckpoint` when the bytes of the run's own checkpoint are not those that were written; it is set aside.
    """
    if (found := begins_with(task)) is not None:
        with transfer.own_copy(found, task.options) as folder:
            done = task.load(folder)
            gather(None, task.world)  # the copy stays until the last rank has read it
            return done
    if (init := gather(task.init, task.world)[0]) is not None:  # of a run that goes on, ranks may find others
        with transfer.shared_copy(init, "init", task.options) as folder:
            task.take_over(folder)
            gather(None, task.world)
    return 0


def begins_with(task: TrainingTask[Any, Any]) -> str | None:
    """The checkpoint that all ranks continue, whatever is committed meanwhile: rank 0 looks for the newest one where none was named."""
    if task.resume_from != NEWEST:
        return task.resume_from
    return gather(history.newest(task.folder, task.options) if task.rank == 0 else None, task.world)[0]


def run_steps(task: TrainingTask[Any, Any], start: int, log: RunLog | None) -> Row:
    """Steps `start` .. `total_steps - 1`; rank 0 has the log."""
    task.settle()
    model = task.parallel.wrap(task.learner)
    evaluations, faults = Evaluations(task.evaluators()), ErrorBudget(task.error_limit)
    with waiting_for("the held-out rows"):
        task.read_held_out()
    model.train()
    window, row = Window(), Row()
    with closed(task.stream(start)) as stream, traced(task, start) as step_is_over, saver_of(task, log) as saver:
        for step in range(start, task.total_steps):
            task.clock.begin()
            waited = time.perf_counter()
            with waiting_for(f"the data of step {step + 1}"):
                share = next(stream)
            window.wait_s += time.perf_counter() - waited
            window.steps += 1
            task.clock.lap("data")
            with waiting_for(f"step {step + 1}, computed by all ranks"):
                task.step(model, share, step)
            step_is_over()

            # --- metrics, evaluations, checkpoint --------------------------------------------------------------------
            done = step + 1
            final = done == task.total_steps
            due = evaluations.due(done, final)
            saves = final or done % task.checkpoint_every == 0
            if not (due or saves or done % task.log_every == 0):
                continue
            with waiting_for(f"the device to end step {done}"):
                window.close(task.clock)
            with waiting_for("the other ranks, to ask whether all are to end"):
                notice = None if final else task.notice()
            if notice is not None:
                due, saves = [], True  # an evaluation may take longer than there is time
            with waiting_for(f"the other ranks' metrics of step {done}"):
                row, errors = task.row(window, done)
            row |= {"world": task.world} | (notice.row() if notice is not None else {})
            row |= saver.poll(window.other_s + window.seconds)
            if due and finite(row):  # else evaluations would fail first, and hide why
                with task.measuring():
                    row |= evaluations.measure(due, task.moment(done))
            if log is not None:
                log.write(row, errors)
            faults.check(row)
            refuse_divergence(row, task.lr_setting)
            if saves:
                save = saver.now if final or notice is not None else saver.begin
                save(lambda done=done: task.stage(done), history.address(task.folder, done), row)
            if notice is not None:
                raise StoppedByNotice(notice, done)
            window = window.after()
    return task.finish(row)


@contextlib.contextmanager
def closed(stream: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """However it ends: what reads ahead of it ends too."""
    with contextlib.ExitStack() as closing:
        if (close := getattr(stream, "close", None)) is not None:
            closing.callback(close)
        yield stream


def saver_of(task: TrainingTask[Any, Any], log: RunLog | None) -> Saver:
    """Every rank writes its part of a checkpoint behind the training, and hears of it when it is there."""
    return Saver(
        task.folder,
        task.options,
        keep=task.keep,
        rank=task.rank,
        world=task.world,
        lease=task.lease,
        sync=log.sync if log is not None else lambda: None,
        committed=task.committed,
    )


# --- what ends a run -------------------------------------------------------------------------------------------------


def finite(row: Row) -> bool:
    return all(math.isfinite(row[name]) for name in HEALTH)


def refuse_divergence(row: Row, lr_setting: str) -> None:
    """Raises `UserError` on every rank alike, before a checkpoint of NaN replaces a good one."""
    for name in HEALTH:
        if not math.isfinite(row[name]):
            remedy = f"Lower {lr_setting}, or continue from an older checkpoint; the run's checkpoints are from before."
            raise UserError(name, row[name], f"a finite number at step {row['step']}", remedy)


class ErrorBudget:
    """Stops a run whose share of unreadable rows grows past the task's limit."""

    def __init__(self, limit: tuple[str, float, int] | None) -> None:
        self.limit = limit
        self.recent: deque[tuple[int, int]] = deque(maxlen=100)

    def check(self, row: dict[str, Any]) -> None:
        """Raises `UserError` on every rank alike: the row is the same everywhere."""
        if self.limit is None:
            return
        setting, share, least = self.limit
        self.recent.append((row["quarantined"], row["rows"]))
        bad, rows = (sum(column) for column in zip(*self.recent, strict=True))
        if rows >= least and bad > share * rows:
            expected = f"<= {setting} = {share:.1%} of {rows} rows"
            raise UserError("quarantined rows", bad, expected, "See errors.jsonl in the run folder for each reason.")
