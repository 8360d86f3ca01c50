"""Values of training rows beside what the data path made of them, kept in every checkpoint: a policy shows by them that it inverts it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy

from jala_ray.data.samples.draw import generator
from jala_ray.data.samples.signals import SignalStatistics, at_times
from jala_ray.data.samples.source import Sample
from jala_ray.types import UserError

if TYPE_CHECKING:
    from jala_ray.data.samples.flow_recipe import FlowRecipe
    from jala_ray.data.sampling.plan import PlanRow

FILE = "replay.safetensors"
KEPT = 32
"""Values of each dimension."""
EXACT = 1e-6
"""Relative: values nearer to a quantile than this count as within."""


@dataclass(frozen=True, eq=False)
class Replay:
    """Of one robot, dimension by dimension (a line is no single moment): values that normalisation does not clamp, ascending.

    Dimensions are those of the objective's signals, one after another.
    """

    state: np.ndarray
    """(KEPT, S) float64, as the data set has them."""
    state_normalised: np.ndarray
    """(KEPT, S) float32, as the training data path made them."""
    action: np.ndarray
    """(KEPT, A) float64."""
    action_normalised: np.ndarray
    """(KEPT, A) float32."""


def replays(recipe: FlowRecipe, rows: Iterable[tuple[PlanRow, Sample]]) -> dict[str, Replay]:
    """By robot, of training rows that went through the recipe as in training. Rows that it refuses are left out.

    Raises `UserError` where all values of a dimension lie outside of its own statistics.
    """
    found: dict[str, list[Replay]] = {}
    for row, sample in rows:
        try:
            robot, one = _replayed(recipe, row, sample)
        except UserError:
            continue  # training says why
        found.setdefault(robot, []).append(one)
    return {robot: _kept(recipe, robot, parts) for robot, parts in found.items()}


def _replayed(recipe: FlowRecipe, row: PlanRow, sample: Sample) -> tuple[str, Replay]:
    """All values of one row: its state, and those of its actions that are there."""
    chance = recipe.draw(generator(recipe.config.seed, row.epoch, row.plan_row), sample)
    laid = recipe.lay_out(sample, chance)
    given, robot = laid.signals, recipe.robots[int(laid.signals["robot"])]
    measured = [at_times(recipe.signal(sample, name), [chance.at_s])[0].reshape(1, -1) for name in recipe.flow.state]
    state, there = np.concatenate(measured, 1).astype(np.float64), ~given["action_is_pad"]
    size = int(given["dims"].sum())
    actions = (given["units"][there, :size].astype(np.float64), given["action"][there, :size])
    return robot, Replay(state, given["state"][None, : state.shape[1]], *actions)


def _kept(recipe: FlowRecipe, robot: str, parts: Sequence[Replay]) -> Replay:
    every = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Replay)}
    kept = {}
    for kind, names in (("state", recipe.flow.state), ("action", recipe.flow.action)):
        of = [
            (name, i, recipe.statistics(name, robot))
            for name in names
            for i in range(recipe.statistics(name, robot).size)
        ]
        columns = [
            _chosen(every[kind][:, at], every[f"{kind}_normalised"][:, at], *told, recipe.flow.scale == "quantile")
            for at, told in enumerate(of)
        ]
        kept[kind], kept[f"{kind}_normalised"] = (np.stack(column, 1) for column in zip(*columns, strict=True))
    return Replay(**kept)


def _chosen(
    values: np.ndarray, normalised: np.ndarray, name: str, dimension: int, of: SignalStatistics, clamped: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(KEPT,) of values (n,), spread over their range, and of what they were made."""
    low, high = of.q01[dimension], of.q99[dimension]
    slack = EXACT * max(abs(low), abs(high))
    within = np.flatnonzero((values >= low - slack) & (values <= high + slack)) if clamped else np.arange(len(values))
    if not len(within):
        expected = f"training rows within their own quantiles, {low:g} to {high:g}"
        shown = f"{values.min():g} to {values.max():g}" if len(values) else "no value"
        raise UserError(
            f"signal {name}, dimension {dimension}", shown, expected, "Its statistics are not of these rows."
        )
    order = within[np.argsort(values[within], kind="stable")]
    at = order[np.linspace(0, len(order) - 1, KEPT).round().astype(int)]
    return values[at], normalised[at]


def save(kept: Mapping[str, Replay], folder: Path) -> None:
    robots = list(kept)
    arrays = {
        f"{i}/{field.name}": np.ascontiguousarray(getattr(kept[robot], field.name))
        for i, robot in enumerate(robots)
        for field in fields(Replay)
    }
    safetensors.numpy.save_file(arrays, folder / FILE, {"robots": json.dumps(robots)})


def load(folder: Path) -> dict[str, Replay]:
    """By robot; of none where the folder has no such file."""
    if not (folder / FILE).exists():
        return {}
    with safetensors.safe_open(folder / FILE, "numpy") as file:
        robots = json.loads(file.metadata()["robots"])
        names = [field.name for field in fields(Replay)]
        return {
            robot: Replay(**{name: file.get_tensor(f"{i}/{name}") for name in names}) for i, robot in enumerate(robots)
        }
