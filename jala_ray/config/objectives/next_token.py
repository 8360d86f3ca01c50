"""Next-token prediction of motion codes (Being-H0), optionally with LSP latents as a prefix (method.md 9)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from jala_ray.config.objectives.base import OBJECTIVES, LayoutSpec, ObjectiveConfig, PerceiverConfig
from jala_ray.parsing import override

if TYPE_CHECKING:
    from jala_ray.config.run import RunConfig


@OBJECTIVES.register("next_token", place=2)
@dataclass(frozen=True)
class NextTokenConfig(ObjectiveConfig):
    """Being-H0: next-token prediction of motion tokens on labelled data, optionally with LSP features as a prefix."""

    kind: Literal["next_token"] = "next_token"
    """Which objective it is; a preset decides."""
    state: Literal["none", "prefix"] = "none"
    """Where LSP's latents of the first frame enter: nowhere, or as a prefix."""
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)

    implementation: ClassVar[str] = "jala_ray.objectives.next_token:NextToken"

    @property
    def layout(self) -> LayoutSpec:
        return LayoutSpec(False, None, self.state, "none", reads="before")

    @property
    def perceivers(self) -> PerceiverConfig:
        return self.perceiver

    def check(self, run: RunConfig) -> None:
        self.perceiver.check(run)


@NextTokenConfig.variant
def next_token(base: RunConfig) -> RunConfig:
    """Being-H0: next-token prediction of motion tokens on labelled clips."""
    objective = NextTokenConfig(perceiver=base.objective.perceivers or PerceiverConfig())
    return override(replace(base, objective=objective), {"data.labels": "labelled_only"})


@NextTokenConfig.variant
def next_token_dino(base: RunConfig) -> RunConfig:
    """Next token with the first frame's features, as LSP latents, as a prefix."""
    return override(next_token(base), {"objective.state": "prefix"})
