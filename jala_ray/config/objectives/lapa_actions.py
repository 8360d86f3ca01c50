"""LAPA-dagger, first stage: a latent-action model whose codes are learned by reconstruction (method.md 9)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from jala_ray.config.model import BackboneConfig, TextConfig
from jala_ray.config.objectives._latent_actions import LatentActionConfig, LatentActionObjective
from jala_ray.config.objectives.base import OBJECTIVES, LayoutSpec, PerceiverConfig
from jala_ray.parsing import override

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
    reconstruct: Literal["features", "pixels"] = "features"
    """What the forward model makes of v_{t+delta}, patch by patch: the frozen encoder's features, or, as LAPA itself, pixels (8 x 8 a
    patch, each patch normalised). Pixels are decoded from the videos, also beside a cache of features."""

    implementation: ClassVar[str] = "jala_ray.objectives.lapa:LapaActions"

    @property
    def layout(self) -> LayoutSpec:
        return replace(super().layout, pixels=self.reconstruct == "pixels")

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


@LapaActionsConfig.variant
def lapa_actions_pixels(base: RunConfig) -> RunConfig:
    """LAPA-dagger, first stage, with pixels reconstructed instead of features, as LAPA does."""
    return override(lapa_actions(base), {"objective.reconstruct": "pixels"})
