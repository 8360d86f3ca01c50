"""The objective's health figures, which every run has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jala_ray.config.evaluators import EVALUATORS, Evaluator

if TYPE_CHECKING:
    from jala_ray.training.evaluating import Moment


@EVALUATORS.register("monitors", place=1)
class Monitors(Evaluator):
    """The objective's health figures on the batch of the step, on rank 0."""

    every_rank = False
    set_by = "train.monitor_every"

    @property
    def prefix(self) -> str:
        return "monitor/"

    def part(self, at: Moment) -> dict[str, float]:
        with at.autocast():
            return at.learner.monitors(at.batch)

    def figures(self, parts: Sequence[dict[str, float]]) -> dict[str, float]:
        return parts[0]
