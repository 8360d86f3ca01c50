"""Discrete latent actions, which both stages of LAPA-dagger have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jala_ray.config.checking import at_least
from jala_ray.config.encoders import refuse_pairs
from jala_ray.config.objectives.base import LayoutSpec, MaskingConfig, ObjectiveConfig
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from jala_ray.config.run import RunConfig


@dataclass(frozen=True)
class LatentActionConfig:
    """Discrete latent actions of a pair of frames; by default as many as LAPA's, 8^4."""

    tokens: int = 4
    """Codes per pair; each has a codebook of its own."""
    codes: int = 8
    """Vectors per codebook."""
    width: int = 32
    """Of a code's vector."""
    commitment: float = 0.25
    """Weight of the commitment loss."""
    decay: float = 0.99
    """EMA decay of the codebooks, an optimizer step."""

    def check(self, run: RunConfig) -> None:
        """Raises `ConfigError`, also for an encoder that gives no features of single frames."""
        at_least("objective.actions.", self, {"tokens": 1, "codes": 2, "width": 2, "commitment": 0, "decay": 0})
        if self.width % 2:
            raise ConfigError("objective.actions.width", self.width, "an even number")
        if self.decay >= 1:
            raise ConfigError("objective.actions.decay", self.decay, "0 <= decay < 1", "At 1 no codebook would learn.")
        refuse_pairs(run.model.encoder.kind, "The forward model needs features of each frame alone.")


class LatentActionObjective(ObjectiveConfig):
    """A stage of LAPA-dagger: all clips, labels unread, and no real motion tokens to generate."""

    @property
    def layout(self) -> LayoutSpec:
        return LayoutSpec(True, MaskingConfig(), "none", "all", labels=False, reads="none")

    @property
    def generates(self) -> bool:
        return False
