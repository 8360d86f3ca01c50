"""LAPA-dagger, second stage: the VLA predicts latent-action codes (method.md 9)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from jala_ray.config.objectives._latent_actions import LatentActionConfig, LatentActionObjective
from jala_ray.config.objectives.base import OBJECTIVES, LayoutSpec, PerceiverConfig
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from jala_ray.config.run import RunConfig


@OBJECTIVES.register("lapa_codes", place=4)
@dataclass(frozen=True)
class LapaCodesConfig(LatentActionObjective):
    """LAPA-dagger, second stage: the VLA predicts the codes that the first stage's model (`init`) gives to every chunk."""

    kind: Literal["lapa_codes"] = "lapa_codes"
    """Which objective it is; a preset decides."""
    actions: LatentActionConfig = field(default_factory=LatentActionConfig)
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)
    """As in the first stage."""

    implementation: ClassVar[str] = "jala_ray.objectives.lapa:LapaCodes"

    @property
    def layout(self) -> LayoutSpec:
        return replace(super().layout, reads="aligned")

    @property
    def inherits(self) -> tuple[str, ...]:
        return ("actions",)

    @property
    def perceivers(self) -> PerceiverConfig:
        return self.perceiver

    def check(self, run: RunConfig) -> None:
        self.perceiver.check(run)
        self.actions.check(run)
        if run.init is None:
            remedy = "Train lapa_actions first and pass --init with one of its checkpoints."
            raise ConfigError("init", run.init, f"a checkpoint that holds {', '.join(self.inherits)}", remedy)


@LapaCodesConfig.variant
def lapa_codes(base: RunConfig) -> RunConfig:
    """LAPA-dagger, second stage: the VLA predicts the codes of the first one, named by `init`. Real tokens come after it, by `init` too."""
    return replace(base, objective=LapaCodesConfig(perceiver=base.objective.perceivers or PerceiverConfig()))
