"""Places that draw a run's curves: TensorBoard, Weights & Biases, MLflow.

None of them is needed to train. Each is fed from a thread of its own (`Courier`), so that neither an error nor a silence of its server
reaches the run: an outage is one warning, rows wait until it is over, and what was not sent in the end is counted and said.
"""

from __future__ import annotations

import functools
import json
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from jala_ray.config import AnyRun
from jala_ray.parsing import flatten

Row = dict[str, Any]

WAITING = 10_000
"""Rows that wait for a tracker at most."""
PATIENCE_S = 600.0
"""How long one row is tried while its tracker answers with errors: it may be this row that is refused."""
PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Between two attempts; doubled each time."""
SILENCE_S = 120.0
"""A call that takes longer is an outage too."""
CLOSING_S = 60.0
"""How long the end of a run waits for a tracker that makes no progress."""
LAST_TRIES = 3
"""Failures in a row, after which nothing is tried a second time at the end of a run."""


class Tracker(Protocol):
    """A run at such a place. Any call may fail or hang."""

    def log(self, row: Row) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run folder; after a rollback the steps since are drawn anew."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second

        self.writer = SummaryWriter(str(folder), purge_step=start + 1)

    def log(self, row: Row) -> None:
        for name, value in numbers(row).items():
            self.writer.add_scalar(name, value, row["step"], walltime=row.get("time_s"))
        self.writer.flush()  # a full disk is told by its next call, else never

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """The run `run` of a project, continued if it is there."""

    def __init__(self, project: str, config: AnyRun, folder: Path, run: str) -> None:
        import wandb  # pyright: ignore[reportMissingImports]  # an extra

        self.run = wandb.init(
            project=project,
            name=config.name,
            id=run,
            resume="allow",
            config=flatten(config),
            allow_val_change=True,  # some settings may change between attempts
            dir=str(folder),
        )

    def log(self, row: Row) -> None:
        self.run.log(numbers(row), step=row["step"])

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """The run of an experiment that a `Memory` knows, or a new one; `keep` is told its id, and that its parameters are there."""

    def __init__(self, experiment: str, config: AnyRun, known: dict[str, Any], keep: Callable[..., None]) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]  # an extra

        self.mlflow, run = mlflow, known["run"]
        mlflow.set_experiment(experiment)
        started = mlflow.start_run(run_id=run) if run is not None else mlflow.start_run(run_name=config.name)
        try:
            if run is None:
                keep(run=started.info.run_id, parameters=False)
            # Once: they stay those that it began with, for MLflow lets none change. Older memories say nothing of them.
            if run is None or not known.get("parameters", True):
                mlflow.log_params({k: str(v)[:500] for k, v in flatten(config).items()})
                keep(parameters=True)
        except Exception:
            mlflow.end_run()  # one that is active can't be started by the next try
            raise

    def log(self, row: Row) -> None:
        when = int(1000 * row["time_s"]) if "time_s" in row else None
        self.mlflow.log_metrics(numbers(row), step=row["step"], timestamp=when)

    def close(self) -> None:
        self.mlflow.end_run()


def numbers(row: Row) -> dict[str, float]:
    return {
        k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and k not in ("step", "attempt", "time_s")
    }


class Memory:
    """`trackers.json` of a run folder: which run a place has for it (`run`), the last step that was sent there (`sent`), and
    whether the run's parameters were (`parameters`; of MLflow)."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        self.known: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                self.known = json.loads(path.read_text())
            except ValueError as error:  # curves go on in another run, which is no reason to end this one
                print(f"WARNING {path}: {error}. Trackers begin another run.", flush=True)

    def of(self, place: str) -> dict[str, Any]:
        return self.known.get(place, {"run": None, "sent": 0})

    def keep(self, place: str, **values: Any) -> None:
        with self.lock:
            self.known[place] = self.of(place) | values
            fresh = self.path.with_suffix(".new")
            fresh.write_text(json.dumps(self.known, indent=1))
            fresh.replace(self.path)


class Courier:
    """Takes rows at once, and brings them to a tracker in the background, in order.

    Rows that can't be brought wait for the tracker's return, up to `WAITING` of them. `close` waits for the rest, but not for a tracker
    that does nothing.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Tracker],
        *,
        after: int = 0,
        rows: Iterable[Row] = (),
        sent: Callable[[int], None] | None = None,
    ) -> None:
        """The tracker has the steps up to `after`, and gets the later ones of `rows` first; `sent` is told every step that arrives."""
        self.name, self.connect, self.after, self.sent = name, connect, after, sent
        self.tracker: Tracker | None = None
        self.rows: queue.Queue[Row] = queue.Queue(WAITING)
        self.taken = self.arrived = self.failures = 0
        self.warned = False
        self.calling: float | None = None
        """When the call that is being made began."""
        self.closing = threading.Event()
        for row in rows:
            self.log(row)
        self.thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self.thread.start()

    def log(self, row: Row) -> None:
        if row["step"] <= self.after:
            return  # rolled back and done again, with the same values
        self.taken += 1
        try:
            self.rows.put_nowait(row)
        except queue.Full:
            self._warn(f"{WAITING} rows wait for it already")
        began = self.calling
        if began is not None and time.monotonic() - began > SILENCE_S:
            self._warn(f"it has not answered for {SILENCE_S:g} s")

    def close(self) -> None:
        """No row comes after this; call `closing.set()` of all couriers first, so that they finish side by side."""
        self.closing.set()
        progress, since = -1, time.monotonic()
        while self.thread.is_alive() and time.monotonic() - since < CLOSING_S:
            if progress != self.arrived:
                progress, since = self.arrived, time.monotonic()
            self.thread.join(0.05)
        if self.thread.is_alive():
            self._warn(f"it did not finish within {CLOSING_S:g} s")
        if missing := self.taken - self.arrived:
            print(f"{self.name}: {missing} of {self.taken} rows were not sent; metrics.jsonl has them", flush=True)

    def _work(self) -> None:
        if not self._attempt(self._connect, math.inf):
            return
        assert self.tracker is not None
        while (row := self._next()) is not None:
            if self._attempt(functools.partial(self.tracker.log, row), PATIENCE_S):
                self.arrived += 1
                if self.sent is not None:
                    self._attempt(functools.partial(self.sent, row["step"]), 0.0)
        self._attempt(self.tracker.close, 0.0)

    def _connect(self) -> None:
        self.tracker = self.connect()

    def _next(self) -> Row | None:
        """The next row, when there is one; None after the last."""
        while True:
            closing = self.closing.is_set()  # asked first: what was taken before is in the queue
            try:
                return self.rows.get(timeout=0.0 if closing else 0.5)
            except queue.Empty:
                if closing:
                    return None

    def _attempt(self, call: Callable[[], None], patience_s: float) -> bool:
        """Whether `call` went well, in the end; tried for `patience_s`, and a few times more at the end of a run."""
        began, pause = time.monotonic(), PAUSE_S
        while True:
            self.calling = time.monotonic()
            try:
                call()
                self.failures = 0
                return True
            except Exception as error:  # whatever a tracker does wrong, the run goes on
                self._warn(str(error) or type(error).__name__)
            finally:
                self.calling = None
            self.failures += 1
            if time.monotonic() - began >= patience_s or (self.closing.is_set() and self.failures >= LAST_TRIES):
                return False
            self.closing.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _warn(self, what: str) -> None:
        if not self.warned:
            self.warned = True
            print(f"WARNING {self.name}: {what}. The run goes on; metrics.jsonl has every row.", flush=True)


def tensorboard(folder: Path, start: int) -> Courier:
    return Courier("TensorBoard", lambda: TensorBoard(folder, start))


def weights_and_biases(project: str, config: AnyRun, folder: Path, memory: Memory, rows: Iterable[Row]) -> Courier:
    """The run folder's run of the project. `rows` are what the folder has already: what the project lacks of them is sent first."""
    place = f"wandb {project}"
    run = memory.of(place)["run"] or secrets.token_hex(8)  # the name is no id: it is used under several roots
    memory.keep(place, run=run)
    return _continued("wandb", place, lambda: WeightsAndBiases(project, config, folder, run), memory, rows)


def mlflow(experiment: str, config: AnyRun, memory: Memory, rows: Iterable[Row]) -> Courier:
    """The run folder's run of the experiment; `rows` as above."""
    place = f"mlflow {experiment}"

    def connect() -> MLflow:
        return MLflow(experiment, config, memory.of(place), functools.partial(memory.keep, place))

    return _continued("mlflow", place, connect, memory, rows)


def _continued(name: str, place: str, connect: Callable[[], Tracker], memory: Memory, rows: Iterable[Row]) -> Courier:
    def sent(step: int) -> None:
        memory.keep(place, sent=step)

    return Courier(name, connect, after=memory.of(place)["sent"], rows=rows, sent=sent)
