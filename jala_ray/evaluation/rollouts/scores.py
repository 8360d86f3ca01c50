"""Completion ratio, success, subtasks and failures of forms, each with an interval.

Completion ratio is the share of a rollout's subtasks that were completed, its mean over rollouts (JALA, supplement B.2), with a bootstrap
over rollouts; shares of rollouts have Wilson's interval, which holds for few of them and for 0 and 1. Over several tasks and variants,
rollouts are drawn within each, and each counts alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from jala_ray.evaluation.bootstrap import LEVEL, RESAMPLES, bootstrap
from jala_ray.evaluation.rollouts.forms import RobotTask, RolloutForm, RolloutRecord
from jala_ray.types import UserError

Figures = dict[str, Any]
Drawn = tuple[float, np.ndarray]
"""A mean completion ratio, and means (resamples,) over rollouts that were drawn again."""
APART = 1000
"""Between the seeds of two forms: their rollouts are drawn apart from one another."""


def score(forms: Sequence[RolloutForm]) -> Figures:
    """All figures, plain values. Raises `UserError` for forms of different tasks, or two of one policy."""
    names = [form.policy for form in forms]
    for form in forms[1:]:
        if form.tasks != forms[0].tasks:
            remedy = "Score them one by one, or fill in forms of the same tasks."
            raise UserError("tasks", f"those of {form.policy}", f"the tasks of {names[0]}", remedy)
    if len(set(names)) < len(names):
        raise UserError("policy", names, "one form of each policy", "Rename one at the top of the form.")
    drawn = [_drawn(form, APART * place) for place, form in enumerate(forms)]
    return {
        "level": LEVEL,
        "resamples": RESAMPLES,
        "tasks": [_described(task) for task in forms[0].tasks],
        "policies": {form.policy: _policy(form, own) for form, own in zip(forms, drawn, strict=True)},
        "against": {name: _difference(drawn[0], own) for name, own in zip(names[1:], drawn[1:], strict=True)},
    }


def _described(task: RobotTask) -> Figures:
    names = [variant.name for variant in task.variants]
    facts = {"name": task.name, "title": task.title, "subtasks": list(task.subtasks), "rollouts": task.rollouts}
    return facts | {"variants": names, "classes": list(task.classes)}


def ratio(record: RolloutRecord) -> float:
    return sum(record.completed) / len(record.completed)


def _drawn(form: RolloutForm, seed: int) -> list[Drawn | None]:
    """Of every task and variant; None for those without a rollout."""
    found: list[Drawn | None] = []
    for cell, (_, _, records) in enumerate(form.cells()):
        values = np.array([[ratio(record)] for record in records])
        found.append((float(values.mean()), bootstrap(values, seed=seed + cell)[:, 0]) if records else None)
    return found


def _policy(form: RolloutForm, drawn: Sequence[Drawn | None]) -> Figures:
    tasks: dict[str, Figures] = {}
    variants: dict[str, list[Drawn | None]] = {}
    for (task, variant, records), own in zip(form.cells(), drawn, strict=True):
        tasks.setdefault(task.name, {})[variant.name] = _cell(task, records, own)
        variants.setdefault(variant.name, []).append(own)
    facts = {"rater": form.rater, "robot": form.robot, "date": form.date, "rollouts": len(form.rollouts)}
    by_variant = {name: mean_of(own) for name, own in variants.items()}
    return facts | {"tasks": tasks, "variants": by_variant, "overall": mean_of(drawn)}


def _cell(task: RobotTask, records: Sequence[RolloutRecord], own: Drawn | None) -> Figures:
    return {
        "rollouts": len(records),
        "completion": mean_of([own]),
        "success": share(sum(all(record.completed) for record in records), len(records)),
        "subtasks": [share(sum(r.completed[i] for r in records), len(records)) for i in range(len(task.subtasks))],
        "failures": dict(Counter(record.failure for record in records if record.failure)),
    }


def share(count: int, of: int) -> Figures:
    """A share of rollouts with Wilson's interval; None without any."""
    if not of:
        return {"count": 0, "of": 0, "mean": None, "low": None, "high": None}
    found = binomtest(count, of).proportion_ci(LEVEL, method="wilson")
    return {"count": count, "of": of, "mean": count / of, "low": float(found.low), "high": float(found.high)}


def mean_of(drawn: Sequence[Drawn | None]) -> Figures:
    """Mean of cells that count alike, with its interval; None without any."""
    known = [own for own in drawn if own is not None]
    if not known:
        return {"mean": None, "low": None, "high": None, "cells": 0}
    means = np.mean([again for _, again in known], axis=0)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = float(np.mean([mean for mean, _ in known]))
    return {"mean": mean, "low": float(low), "high": float(high), "cells": len(known)}


def _difference(first: Sequence[Drawn | None], other: Sequence[Drawn | None]) -> Figures:
    """Mean completion of `other` less that of `first`, over the cells that both have."""
    pairs = [(a, b) for a, b in zip(first, other, strict=True) if a is not None and b is not None]
    return mean_of([(b[0] - a[0], b[1] - a[1]) for a, b in pairs])
