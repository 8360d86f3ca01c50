"""`--dry-run`: trials, sizes, and what they would cost."""

from __future__ import annotations

import json

from jala_ray.config import RunConfig
from jala_ray.sweeps.plan import PlannedSweep
from jala_ray.sweeps.search import FIRST, propose
from jala_ray.training.estimate import gpu_hours, step_seconds

SHOWN = 12
START_SECONDS = 30.0
"""Of a trial before its first step and after its last: processes, models, first batch."""


def estimate(plan: PlannedSweep, like: str | None = None, price: float | None = None) -> str:
    """What `--dry-run` prints. Raises `ConfigError` where `like` has no metrics."""
    strategy, steps = plan.strategy, plan.steps
    lines = [f"{strategy.trials} trials by {strategy.method} into {plan.folder}", "", "searched:"]
    lines += [f"  {key}: {json.dumps(domain.to_json())}" for key, domain in plan.domains.items()]
    known = strategy.trials if strategy.method != "tpe" else min(FIRST, strategy.trials)
    lines += ["", "trials:"]
    for number in range(min(known, SHOWN)):
        values = propose(strategy, number, plan.domains, [], plan.metrics, None)
        lines.append(f"  {number:05d}  " + ", ".join(f"{key} {value}" for key, value in values.items()))
    rest = strategy.trials - min(known, SHOWN)
    if rest:
        lines.append(f"  and {rest} more" + (", from what the first ones find" if strategy.method == "tpe" else ""))
    lines += ["", *_sizes(plan), "", *_cost(plan, steps, like, price)]
    return "\n".join(lines)


def _sizes(plan: PlannedSweep) -> list[str]:
    base, cluster = plan.base, plan.base.cluster
    lines = ["a trial:", f"  {plan.steps} steps, a report and a checkpoint every {plan.report_every}"]
    if isinstance(base, RunConfig):
        backbone, language = base.model.backbone, base.model.backbone.language
        size = backbone.pretrained or f"random, {language.layers} blocks of width {language.hidden}"
        lines.append(f"  {plan.steps * base.train.batch:,} samples, {base.train.batch} a step; backbone: {size}")
    lines.append(f"  {cluster.workers} workers of {cluster.cpus_per_worker:g} CPU and {cluster.gpus_per_worker:g} GPU")
    at_once = "as the cluster holds" if plan.concurrent is None else str(plan.concurrent)
    lines.append(f"  at a time: {at_once}{', in waves' if plan.waves else ''}; data: {_data(plan)}")
    lines.append(f"metric: {', '.join(metric.label for metric in plan.metrics)}")
    if plan.halving is not None:
        lines.append(f"halving by {plan.halving.metric.name} at steps {', '.join(map(str, plan.halving.rungs))}")
    return lines


def _data(plan: PlannedSweep) -> str:
    if plan.shares_cache:
        return "a cache that all trials share is made first"
    given = plan.base.data.cache if isinstance(plan.base, RunConfig) else ""
    return f"the cache {given}" if given else "decoded in every trial"


def _cost(plan: PlannedSweep, steps: int, like: str | None, price: float | None) -> list[str]:
    share = plan.halving.expected_share() if plan.halving is not None else 1.0
    total = plan.strategy.trials * steps
    lines = [f"cost: at most {total:,} steps in all, about {round(total * share):,} with halving ({share:.0%})"]
    if like is None:
        return [*lines, "  hours: unknown; --like RUN takes the speed of a run that is there"]
    seconds = step_seconds(like, plan.options)
    cluster = plan.base.cluster
    trial_hours = [(plan.strategy.trials * (START_SECONDS + f * steps * seconds)) / 3600 for f in (share, 1.0)]
    lines.append(f"  {seconds:.3g} s per step in {like}, {START_SECONDS:g} s for each start")
    lines.append(f"  hours of trials: about {trial_hours[0]:.2f}, at most {trial_hours[1]:.2f}")
    if plan.concurrent:
        lines.append(f"  wall clock, {plan.concurrent} at a time: about {trial_hours[0] / plan.concurrent:.2f} h")
    gpus = cluster.workers * cluster.gpus_per_worker
    if gpus:
        lines += gpu_hours(tuple(hours * gpus for hours in trial_hours), price)
    return lines
