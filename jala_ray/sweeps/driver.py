"""Ray Tune runs the trials; values, reports and decisions go through the ledger."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray import cloudpickle, tune
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from jala_ray import storage
from jala_ray.storage import StorageOptions
from jala_ray.sweeps.domains import Domain
from jala_ray.sweeps.halving import Halving
from jala_ray.sweeps.ledger import Ledger, Record
from jala_ray.sweeps.metrics import TrialMetric
from jala_ray.sweeps.search import Strategy, propose
from jala_ray.training.interrupts import interrupts_given_back
from jala_ray.training.watch import Say
from jala_ray.training.watch import say as say_aloud
from jala_ray.types import UserError

FINAL = "final/"
"""Prefix of what is measured at a trial's end, among what it reports."""
ON_HEAD = {"node:__internal_head__": 0.001}
"""What a trial's own process takes: it only waits for the run that it launched, whose controller stays beside it. The head is no spot
node, and may have no CPUs to give."""
REASON_LENGTH = 500

Report = Callable[[dict[str, Any]], None]


class Trials(Protocol):
    """What a trial does."""

    def __call__(self, number: int, values: Mapping[str, Any], report: Report) -> None:
        """Run trial `number`, or what is left of it, and `report` rows of plain numbers, each with its `step`."""
        ...


@dataclass(frozen=True)
class Sweep:
    """Everything that `run` needs."""

    folder: str
    options: StorageOptions
    trials: Trials
    domains: Mapping[str, Domain]
    metrics: tuple[TrialMetric, ...]
    strategy: Strategy
    halving: Halving | None
    """None: every trial runs to its end."""
    concurrent: int
    waves: bool = False
    """Trials go in waves of `concurrent`; values and stops depend on earlier waves alone, so that the sweep can be repeated exactly."""
    retries: int = 0
    """Restarts of a trial's own process."""

    def known_to(self, number: int, ledger: Ledger) -> list[Record]:
        """What a trial's values and stops may depend on."""
        if not self.waves:
            return [record for record in ledger if record.number != number]
        return [record for record in ledger if record.number < self.wave_start(number)]

    def wave_start(self, number: int) -> int:
        return number - number % self.concurrent


def run(sweep: Sweep, say: Say = say_aloud) -> Ledger:
    """Run all trials that are not finished, on the connected Ray; returns the ledger."""
    ledger = Ledger(sweep.folder, sweep.options)
    left = sweep.strategy.trials - sum(record.finished for record in ledger)
    if left <= 0:
        return ledger
    # Ray's own loggers would write every report a second and a third time, and its summary misses their files.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    filesystem, path = storage.filesystem(sweep.folder, sweep.options)
    tuner = tune.Tuner(
        tune.with_resources(functools.partial(_trial, sweep.trials), tune.PlacementGroupFactory([ON_HEAD])),
        tune_config=tune.TuneConfig(
            search_alg=LedgerSearch(sweep, ledger),
            scheduler=LedgerScheduler(sweep, ledger, say),
            num_samples=left,
            max_concurrent_trials=sweep.concurrent,
            trial_dirname_creator=_name,
            trial_name_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=f"ray_tune/{time.strftime('%Y%m%dT%H%M%S')}",
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=[LedgerCallback(sweep, ledger, say)],
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
            verbose=0,
        ),
    )
    try:
        with interrupts_given_back():
            tuner.fit()
    except RuntimeError as error:
        # Ray Tune 2.60 ends with the whole sweep when a trial's own process, not a worker of its run, is killed for memory.
        if not isinstance(error.__cause__, RayError):
            raise
        remedy = (
            "Nothing is lost: run it again with --resume, on a head with more memory or with fewer trials at a time."
        )
        raise UserError("a trial's process", reason(error.__cause__), "one that is not killed", remedy) from error
    return ledger


def _trial(trials: Trials, config: dict[str, Any]) -> None:
    trials(config["number"], config["values"], tune.report)


def _name(trial: Any) -> str:
    return f"{trial.config['number']:05d}"


class LedgerSearch(Searcher):
    """Hands out trial numbers that are not finished, with the values the ledger has for them, or new ones."""

    def __init__(self, sweep: Sweep, ledger: Ledger) -> None:
        super().__init__()
        self.sweep, self.ledger, self.handed = sweep, ledger, set[int]()

    def set_search_properties(self, metric: Any, mode: Any, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        records = self.ledger.records
        open_ = (n for n in range(self.sweep.strategy.trials) if n not in records or not records[n].finished)
        number = next((n for n in open_ if n not in self.handed), None)
        if number is None:
            return Searcher.FINISHED
        start = self.sweep.wave_start(number)
        if self.sweep.waves and not all(n in records and records[n].finished for n in range(start)):
            return None
        self.handed.add(number)
        values = records[number].values if number in records else self._values(number, start)
        self.ledger.add(number, values)
        return {"number": number, "values": values}

    def _values(self, number: int, start: int) -> dict[str, Any]:
        sweep = self.sweep
        history = sweep.known_to(number, self.ledger)
        if sweep.waves:  # of its own wave only what was chosen
            own = (self.ledger.records[n] for n in range(start, number))
            history += [dataclasses.replace(record, state="open") for record in own]
        halving = sweep.halving.metric if sweep.halving is not None else None
        return propose(sweep.strategy, number, sweep.domains, history, sweep.metrics, halving)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass  # the ledger is what is kept

    def restore(self, checkpoint_path: str) -> None:
        pass


class LedgerScheduler(FIFOScheduler):
    """Writes reports down and stops trials by `Halving`."""

    def __init__(self, sweep: Sweep, ledger: Ledger, say: Callable[[str], None]) -> None:
        super().__init__()
        self.sweep, self.ledger, self.say = sweep, ledger, say

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number, sweep = trial.config["number"], self.sweep
        record = self.ledger.records[number]
        if "step" not in result or record.finished:
            return TrialScheduler.CONTINUE
        final = {k.removeprefix(FINAL): v for k, v in result.items() if k.startswith(FINAL)}
        numbers = {k: v for k, v in result.items() if kept(k, v)}
        broken = [f"{k} is {v}" for k, v in (numbers | final).items() if k in self._watched() and not math.isfinite(v)]
        if broken:
            self.ledger.end(number, "failed", f"{broken[0]} at step {result['step']}")
            return TrialScheduler.STOP
        if final:
            self.ledger.measure(number, final)
        noted = self.ledger.report(number, {k: v for k, v in numbers.items() if math.isfinite(v)})
        if noted is None and result["step"] != record.step:
            return TrialScheduler.CONTINUE
        # Of a report that is known already the decision may not be: the driver was killed in between.
        known = sweep.known_to(number, self.ledger)
        stops = sweep.halving is not None and sweep.halving.stops(record, known, sweep.waves)
        if noted is not None:
            shown = sweep.halving.metric if sweep.halving is not None else sweep.metrics[0]
            value = shown.value(noted)
            told = f"{shown.name} {value:.4f}" if value is not None else f"no {shown.name}"
            self.say(f"trial {number:05d} | step {noted['step']} | {told}{' | stopped' if stops else ''}")
        if stops:
            self.ledger.end(number, "stopped")
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def _watched(self) -> set[str]:
        """Numbers that trials are compared by: a trial ends where one is no number."""
        halving = (self.sweep.halving.metric,) if self.sweep.halving is not None else ()
        return {key for metric in (*self.sweep.metrics, *halving) for key in metric.keys}


class LedgerCallback(tune.Callback):
    """Starts and ends."""

    def __init__(self, sweep: Sweep, ledger: Ledger, say: Callable[[str], None]) -> None:
        self.sweep, self.ledger, self.say = sweep, ledger, say

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        self.ledger.start(number)
        values = ", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in trial.config["values"].items())
        self.say(f"trial {number:05d} | {values}")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        record = self.ledger.records[number]
        lacking = [m.name for m in self.sweep.metrics if m.value(record.outcome) is None]
        if record.finished or not lacking:
            self.ledger.end(number, "done")
            self.say(
                f"trial {number:05d} | {record.state} at step {record.step}"
                + (f": {record.reason}" if record.reason else "")
            )
        else:
            self._failed(number, f"it ended without a finite {', '.join(lacking)}")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._failed(trial.config["number"], reason(_error_of(trial)))

    def _failed(self, number: int, why: str) -> None:
        self.ledger.end(number, "failed", why)
        self.say(f"trial {number:05d} | FAILED: {why}")


def _error_of(trial: Any) -> BaseException | None:
    """What a trial ended with; Tune leaves it in a file on the driver's disk first."""
    place = trial.pickled_error_file
    if place is not None and os.path.exists(place):
        with open(place, "rb") as file:
            return cloudpickle.load(file)
    return trial.get_error()


KEPT = ("step", "samples", "samples_per_s", "step_s", "loss")


def kept(name: str, value: object) -> bool:
    """Of a report: what tables and plots need."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and (name in KEPT or name.startswith(("val/", "val_", "loss_")))


def reason(error: BaseException | None) -> str:
    """The root of what Ray hands on, in a line."""
    while error is not None:
        if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
            inner: BaseException | None = error.cause
        elif isinstance(error, WorkerGroupError):
            inner = _first(list(error.worker_failures.values()))
        elif isinstance(error, ControllerError):
            inner = error.controller_failure
        else:
            inner = error.__cause__ if str(error) == "" else None
        if inner is None or inner is error:
            break
        error = inner
    text = " ".join(f"{type(error).__name__}: {error}".split()) if error is not None else "unknown"
    return text if len(text) <= REASON_LENGTH else f"{text[:150]} ... {text[-REASON_LENGTH + 150 :]}"


def _first(failures: Sequence[BaseException]) -> BaseException | None:
    """An error of a worker itself before one that only says that another was gone."""
    own = (failure for failure in failures if not isinstance(failure, RayActorError))
    return next(own, failures[0] if failures else None)
