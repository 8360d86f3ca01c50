"""Which values a trial gets: a pure function of the ledger, the trial's number and the seed, so that a sweep can be continued.

TPE is Optuna's; its study is built anew from the ledger for every suggestion, its sampler is seeded by the number. The first trials of
TPE are points of a Sobol sequence, which fill the space more evenly than draws.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import qmc

from jala_ray.sweeps.domains import Domain
from jala_ray.sweeps.ledger import Record
from jala_ray.sweeps.metrics import TrialMetric
from jala_ray.sweeps.spaces import Method
from jala_ray.types import ConfigError

FIRST = 8
"""Trials before TPE has something to learn from."""
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Strategy:
    """How values are chosen."""

    method: Method
    seed: int
    trials: int
    grid_points: int = 3
    """Values a range, in a grid."""

    def check(self, domains: Mapping[str, Domain]) -> None:
        """Raises `ConfigError` for a grid of another size than the number of trials."""
        if self.method == "grid" and (size := grid_size(domains, self.grid_points)) != self.trials:
            remedy = f"Pass --trials {size}, another --grid-points, or another --search."
            raise ConfigError("--trials", self.trials, f"the grid's {size}", remedy)


def grid_size(domains: Mapping[str, Domain], points: int) -> int:
    return math.prod(len(domain.grid(points)) for domain in domains.values())


def propose(
    strategy: Strategy,
    number: int,
    domains: Mapping[str, Domain],
    history: Sequence[Record],
    metrics: Sequence[TrialMetric],
    halving: TrialMetric | None,
) -> dict[str, Any]:
    """Values of trial `number`; `history` are the trials it may know of, open ones too."""
    if strategy.method == "grid":
        grids = [domain.grid(strategy.grid_points) for domain in domains.values()]
        return dict(zip(domains, next(itertools.islice(itertools.product(*grids), number, None)), strict=True))
    if strategy.method == "random":
        draws = np.random.default_rng((strategy.seed, number)).random(len(domains))
    elif number < FIRST:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a number of points that is no power of two
            draws = qmc.Sobol(len(domains), rng=strategy.seed).random(number + 1)[number]
    else:
        return _tpe(strategy, number, domains, history, metrics, halving)
    return {key: domain.at(float(u)) for (key, domain), u in zip(domains.items(), draws, strict=True)}


def _tpe(
    strategy: Strategy,
    number: int,
    domains: Mapping[str, Domain],
    history: Sequence[Record],
    metrics: Sequence[TrialMetric],
    halving: TrialMetric | None,
) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=1,
            multivariate=True,
            constant_liar=True,
            seed=int(np.random.SeedSequence((strategy.seed, number)).generate_state(1)[0]),
        )
    study = optuna.create_study(directions=[StudyDirection.MINIMIZE] * len(metrics), sampler=sampler)
    distributions = {key: domain.distribution() for key, domain in domains.items()}
    study.add_trials([_told(record, domains, metrics, halving) for record in history])
    asked = study.ask(distributions)
    return {key: domain.outer(asked.params[key]) for key, domain in domains.items()}


def _told(
    record: Record, domains: Mapping[str, Domain], metrics: Sequence[TrialMetric], halving: TrialMetric | None
) -> FrozenTrial:
    """A trial as Optuna wants it: a stopped one ranks behind those that ran longer, a failed one says nothing."""
    common: dict[str, Any] = {
        "params": {key: domain.inner(record.values[key]) for key, domain in domains.items()},
        "distributions": {key: domain.distribution() for key, domain in domains.items()},
    }
    if record.state == "open":
        return create_trial(state=TrialState.RUNNING, **common)
    if record.state == "done":
        values = [value for metric in metrics if (value := errors(record, metric)) is not None]
        if len(values) == len(metrics):
            return create_trial(state=TrialState.COMPLETE, values=values, **common)
    if record.state == "stopped" and len(metrics) == 1 and halving is not None:
        found = {row["step"]: halving.value(row) for row in record.rows}
        steps = {step: halving.error(value) for step, value in found.items() if value is not None}
        return create_trial(state=TrialState.PRUNED, intermediate_values=steps, **common)
    return create_trial(state=TrialState.FAIL, **common)


def errors(record: Record, metric: TrialMetric) -> float | None:
    """A trial's metric with lower as better."""
    value = metric.value(record.outcome)
    return None if value is None else metric.error(value)


def pareto(records: Sequence[Record], metrics: Sequence[TrialMetric]) -> list[Record]:
    """Trials that ran to the end and that no other one beats in every metric; with one metric the best alone, the earliest of equals."""
    found = [(r, [errors(r, m) for m in metrics]) for r in records if r.state == "done"]
    known = [(r, [e for e in es if e is not None]) for r, es in found if None not in es]
    if len(metrics) == 1:
        return [min(known, key=lambda pair: pair[1])[0]] if known else []

    def beaten(one: list[float]) -> bool:
        return any(all(a <= b for a, b in zip(o, one, strict=True)) and o != one for _, o in known)

    return [record for record, errors_ in known if not beaten(errors_)]
