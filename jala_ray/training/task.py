"""What the trainer asks of a task: what is learned, one update, what is logged and measured, what a checkpoint holds."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from jala_ray.config import AnyRun
from jala_ray.config.evaluators import Evaluator
from jala_ray.storage import StorageOptions
from jala_ray.training.clock import Clock, Parts
from jala_ray.training.evaluating import Moment
from jala_ray.training.lease import Lease
from jala_ray.training.notice import Notice
from jala_ray.training.parallel import Alone
from jala_ray.training.setup import storage_options
from jala_ray.training.staging import Staged

Row = dict[str, Any]
NEWEST = "newest"
Config = TypeVar("Config", bound=AnyRun)
Model = TypeVar("Model", bound=nn.Module)


@dataclass
class Window:
    """The steps since the last row."""

    steps: int = 0
    wait_s: float = 0.0
    """Spent waiting for data."""
    other_s: float = 0.0
    """Between its first step and the row before: evaluations, a checkpoint."""
    started: float = field(default_factory=time.perf_counter)
    ended: float | None = None
    """None while it goes on."""
    parts: list[Parts] = field(default_factory=list)
    """Seconds of each of its steps by part, once it is over."""

    @property
    def seconds(self) -> float:
        return (time.perf_counter() if self.ended is None else self.ended) - self.started

    def close(self, clock: Clock) -> None:
        """Its steps are over, on the device too; what comes now is the next window's `other_s`."""
        self.parts = clock.read()
        self.ended = time.perf_counter()

    def after(self) -> Window:
        """The next window, which begins now."""
        now = time.perf_counter()
        return Window(other_s=now - (self.ended or now), started=now)


@dataclass(kw_only=True)
class TrainingTask(ABC, Generic[Config, Model]):
    """A task, and where it is trained. `launch.py` (Ray) and `local.py` (one process) make one for each rank, for `trainer.train`."""

    config: Config
    folder: str
    """The run folder, local or s3://."""
    device: torch.device
    learner: Model
    """On its device; all that learns."""
    total_steps: int
    resume_from: str | None = NEWEST
    """A committed checkpoint of the run folder; None: none; NEWEST: what rank 0 finds there, for all ranks."""
    rank: int = 0
    world: int = 1
    committed: Callable[[Row, str], None] | None = None
    """Called on every rank after a checkpoint is in its place, by then at a later step, with its step's metrics and its address."""
    publish: Callable[[Row], None] | None = None
    """Hears of every row that rank 0 logs."""
    lease: Lease | None = None
    """What holds the run folder for this attempt: asked on rank 0 before a row is written or a checkpoint committed."""
    parallel: Alone = field(default_factory=Alone)
    """How ranks share the learner."""
    noticed: Callable[[], Notice | None] | None = None
    """Whether the workers are to end soon: the same on all ranks, which all have to ask. None where nobody would say so."""

    @cached_property
    def clock(self) -> Clock:
        """Tells the parts of a step: the trainer the data, `step` what comes after."""
        return Clock(self.device)

    # --- settings ----------------------------------------------------------------------------------------------------

    @property
    def options(self) -> StorageOptions:
        return storage_options(self.config)

    @property
    def init(self) -> str | None:
        """Checkpoint of another run, to begin with where the folder holds none."""
        return None

    @property
    @abstractmethod
    def log_every(self) -> int:
        """Steps between two rows; a step that evaluates or saves has one as well."""

    @property
    @abstractmethod
    def checkpoint_every(self) -> int: ...

    @property
    @abstractmethod
    def keep(self) -> int:
        """Newest checkpoints that stay."""

    @property
    def error_limit(self) -> tuple[str, float, int] | None:
        """(setting, largest share of the rows that may be `quarantined`, rows before it counts); None where no row can be bad."""
        return None

    @property
    @abstractmethod
    def lr_setting(self) -> str:
        """What a run that diverged should lower."""

    def notice(self) -> Notice | None:
        """Whether to save now and stop. Collective; asked with every row but the last."""
        return self.noticed() if self.noticed is not None else None

    # --- from the first step to the last -----------------------------------------------------------------------------

    @abstractmethod
    def begin(self) -> None:
        """Build what is not there yet, the optimizer at least. Raises `UserError` for what can't be trained."""

    def take_over(self, folder: Path) -> None:
        """Start with weights of `init`, a local folder."""
        raise NotImplementedError(f"{type(self).__name__} must implement take_over")

    def settle(self) -> None:
        """Called before the first step, with the weights that it begins with; nothing by default."""

    def read_held_out(self) -> None:
        """Read once what evaluations will need; nothing by default."""

    @abstractmethod
    def stream(self, first: int) -> Iterator[Any]:
        """This rank's shares of the steps from `first` on. Where it can be closed, the trainer does."""

    @abstractmethod
    def step(self, model: nn.Module, share: Any, step: int) -> None:
        """One update, the same on all ranks; `model` is the learner, or what `parallel` makes of it. Counts what `row` will tell."""

    @abstractmethod
    def row(self, window: Window, done: int) -> tuple[Row, list[Row]]:
        """Metrics of all ranks over the window after `done` steps, and the rows quarantined in it; begins a new count. Collective.

        It has `loss` and `grad_norm`, which must be finite, and `quarantined` and `rows` where there is an `error_limit`.
        """

    @abstractmethod
    def evaluators(self) -> Sequence[tuple[Evaluator, int]]:
        """What is measured on the way, and every how many steps."""

    def measuring(self) -> contextlib.AbstractContextManager[None]:
        """What evaluations run in: other weights than those that are trained, perhaps."""
        return contextlib.nullcontext()

    @abstractmethod
    def moment(self, done: int) -> Moment:
        """What evaluators are given after `done` steps."""

    def finish(self, row: Row) -> Row:
        """After the last step, on every rank: what the run returns, from the last row."""
        return row

    # --- checkpoints -------------------------------------------------------------------------------------------------

    @abstractmethod
    def stage(self, done: int) -> Staged:
        """This rank's part of all that a resume after `done` steps needs, copied into host memory. The next step waits for it alone."""

    @abstractmethod
    def load(self, folder: Path) -> int:
        """Take over what all ranks staged, from a local folder, on every rank; returns the steps done."""
