"""Loss terms on held-out rows, which every run has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from jala_ray.config.evaluators import EVALUATORS, Evaluator

if TYPE_CHECKING:
    from jala_ray.batch import Batch
    from jala_ray.training.evaluating import Moment


class HeldOutSums(TypedDict):
    """Of one domain on one rank."""

    sums: dict[str, float]
    """`StepOutput.sums`, added."""
    monitors: dict[str, float]
    """Of rank 0's first batch."""


@EVALUATORS.register("validation_loss", place=2)
class ValidationLoss(Evaluator):
    """Loss terms, ratios and health figures on held-out rows of each domain, with the same draws every time."""

    set_by = "train.validate_every"

    @property
    def prefix(self) -> str:
        return "val/"

    def part(self, at: Moment) -> dict[str, HeldOutSums]:
        return {domain: self._of(batches, at) for domain, batches in at.held_out.items() if batches}

    def _of(self, batches: Sequence[Batch], at: Moment) -> HeldOutSums:
        import torch

        sums: dict[str, Any] = {}
        for batch in batches:
            with at.autocast():
                out = at.learner(at.on_device(batch))
            for name, value in out.sums.items():
                sums[name] = sums[name] + value if name in sums else value
        total = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
        monitors: dict[str, float] = {}
        if at.rank == 0:
            with at.autocast():
                monitors = at.learner.monitors(at.on_device(batches[0]))
        return {"sums": total, "monitors": monitors}

    def figures(self, parts: Sequence[Mapping[str, HeldOutSums]]) -> dict[str, float | None]:
        from jala_ray.training.learner import means

        figures: dict[str, float | None] = {}
        for domain, first in parts[0].items():
            sums = {name: sum(part[domain]["sums"][name] for part in parts) for name in first["sums"]}
            figures |= means(sums, f"{domain}/")
            figures |= {f"{domain}/monitor/{name}": value for name, value in first["monitors"].items()}
        return figures
