"""LAPA-dagger, first stage: a latent-action model whose codes are learned by reconstruction (method.md 9)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from jala_ray.config.model import BackboneConfig, TextConfig
from jala_ray.config.objectives._latent_actions import LatentActionConfig, LatentActionObjective
from jala_ray.config.objectives.base import OBJECTIVES, PerceiverConfig

if TYPE_CHECKING:
    from jala_ray.config.run import RunConfig


@OBJECTIVES.register("lapa_actions", place=3)
@dataclass(frozen=True)
class LapaActionsConfig(LatentActionObjective):
    """LAPA-dagger, first stage: inverse and forward dynamics over frozen features, codes learned by reconstruction."""

    kind: Literal["lapa_actions"] = "lapa_actions"
    """Which objective it is; a preset decides."""
    actions: LatentActionConfig = field(default_factory=LatentActionConfig)
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)
    """Sizes of the inverse and of the forward model."""

    implementation: ClassVar[str] = "jala_ray.objectives.lapa:LapaActions"

    @property
    def trains_vla(self) -> bool:
        return False

    @property
    def perceivers(self) -> PerceiverConfig:
        return self.perceiver

    def check(self, run: RunConfig) -> None:
        self.perceiver.check(run)
        self.actions.check(run)


@LapaActionsConfig.variant
def lapa_actions(base: RunConfig) -> RunConfig:
    """LAPA-dagger, first stage: latent actions by reconstruction. It trains no VLA, so the smallest one stands in for it."""
    model = replace(base.model, backbone=BackboneConfig(), text=TextConfig())
    return replace(
        base, model=model, objective=LapaActionsConfig(perceiver=base.objective.perceivers or PerceiverConfig())
    )
