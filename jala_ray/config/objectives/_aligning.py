"""Alignment of h with latent actions, which several objectives have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jala_ray.config.checking import check_layer
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from jala_ray.config.run import RunConfig


@dataclass(frozen=True)
class AlignConfig:
    weight: float = 0.5
    """lambda, weight of the alignment loss beside masked chunk prediction."""
    layer: int = 19
    """The tapped language block, counted from 1 (19 of 28 in the paper)."""
    schedule: Literal["constant", "warmup", "decay"] = "constant"
    """warmup: lambda rises linearly from 0 over the first `schedule_share` of the steps; decay: it falls linearly to 0 over the last."""
    schedule_share: float = 0.2
    """Share of the steps that warmup or decay takes."""
    positions: Literal["masked", "target", "all"] = "masked"
    """Beside untracked chunks, which align throughout. masked: masked positions of the labelled target (decision); target: all of its
    positions; all: those of every chunk of the sequence, also of what is shown (eq. 3 sums over all k of all chunks i)."""
    clips: Literal["all", "labelled", "unlabelled"] = "all"
    """Whose alignment counts. Labelled: of samples that have a labelled chunk; unlabelled: of the others. The rows of a step and their
    weights stay as they are, so that a control differs in nothing else."""
    direction: Literal["both", "anchored"] = "both"
    """Who follows whom. both: h and z each other, as far as `updates` lets z learn. anchored: on labelled chunks z follows h, which stands
    still, on untracked ones h follows z: sections 4.1 and 4.3 permit it. Nothing bounds the spread of h and z then; watch both."""
    target: Literal["latent", "change"] = "latent"
    """What h is compared with: z of the pair, or what moving adds to it, z(v_t, v_{t+delta}) - z(v_t, v_t). Not in the papers: most of
    what a pair shows stands still, and z tells of that."""
    distance: Literal["l1", "cosine"] = "l1"
    """l1: eq. 3. cosine: 1 - cos(h, target), whatever their lengths, as LARA."""
    reduction: Literal["mean", "sum"] = "mean"
    """Of l1, over the width D. sum: as eq. 3 is printed, D times the mean, so that lambda weighs D times more. Positions and samples stay
    means in either case."""
    head: Literal["none", "mlp"] = "none"
    """none: h itself is compared (eq. 3). mlp: what two layers of alignment's own make of it, as REPA's projector, so that h is free
    to hold other things."""

    def check(self, run: RunConfig) -> None:
        """Raises `ConfigError`, also for a layer that a backbone from a configuration has not."""
        if self.weight < 0 or not math.isfinite(self.weight):
            raise ConfigError("objective.align.weight", self.weight, "a finite number >= 0")
        if not 0 < self.schedule_share <= 1:
            expected = "a share of the steps, above 0 and at most 1"
            raise ConfigError("objective.align.schedule_share", self.schedule_share, expected)
        if self.reduction == "sum" and self.distance != "l1":
            raise ConfigError(
                "objective.align.reduction", self.reduction, "mean", "A cosine has no sum over the width."
            )
        if run.model.backbone.pretrained is None:
            check_layer(self.layer, run.model.backbone.language.layers)

    def check_one_way(self, why: str) -> None:
        """Refuse settings of targets that learn, or that a perceiver gives. Raises `ConfigError`."""
        for name, kept in (("direction", "both"), ("target", "latent")):
            if getattr(self, name) != kept:
                raise ConfigError(f"objective.align.{name}", getattr(self, name), kept, why)
