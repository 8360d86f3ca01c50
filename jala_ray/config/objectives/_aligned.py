"""What the objectives have in common that add an alignment to masked chunk prediction and always align."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jala_ray.config.objectives._aligning import AlignConfig
from jala_ray.config.objectives.base import LayoutSpec, MaskingConfig, ObjectiveConfig, PerceiverConfig

if TYPE_CHECKING:
    from typing import Literal


class AlignedObjective(ObjectiveConfig):
    """A kind gives the fields, with defaults of its own."""

    if TYPE_CHECKING:
        state: Literal["mask", "prefix", "none"]
        align: AlignConfig
        perceiver: PerceiverConfig
        masking: MaskingConfig

    @property
    def layout(self) -> LayoutSpec:
        return LayoutSpec(True, self.masking, self.state, self.align.positions)

    @property
    def perceivers(self) -> PerceiverConfig:
        return self.perceiver

    @property
    def aligned_layer(self) -> int:
        return self.align.layer

    @property
    def measures(self) -> tuple[str, ...]:
        return ("masked_loss", "probe_h")
