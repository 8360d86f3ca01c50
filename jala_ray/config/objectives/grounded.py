"""Grounded: masked chunk prediction, aligned with the motion that a teacher reads from pairs of frames (method.md 5, Grounded)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jala_ray.config.objectives._aligned import AlignedObjective
from jala_ray.config.objectives._aligning import AlignConfig
from jala_ray.config.objectives._teacher import TeacherConfig
from jala_ray.config.objectives.base import OBJECTIVES, MaskingConfig, PerceiverConfig
from jala_ray.config.objectives.jala import JalaConfig
from jala_ray.parsing import override

if TYPE_CHECKING:
    from jala_ray.config.run import RunConfig


@OBJECTIVES.register("grounded", place=5)
@dataclass(frozen=True)
class GroundedConfig(AlignedObjective):
    """Masked chunk prediction, and h aligned with the motion that inverse dynamics, fitted on the labels, reads from the pair."""

    kind: Literal["grounded"] = "grounded"
    """Which objective it is; a preset decides."""
    state: Literal["mask", "prefix", "none"] = "mask"
    """Where LSP's latents enter; none: there is no LSP."""
    align: AlignConfig = field(default_factory=lambda: AlignConfig(distance="cosine", head="mlp"))
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)
    """Sizes of LSP."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)

    implementation: ClassVar[str] = "jala_ray.objectives.grounded:Grounded"
    spaces: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "grounded": {
            "objective.align.weight": {"log_around": 10},
            "objective.align.layer": {"layer": True},
            "objective.teacher.form": {"choice": ["closed", "learned"]},
        },
    }

    @property
    def taught(self) -> TeacherConfig:
        return self.teacher

    def check(self, run: RunConfig) -> None:
        self.perceiver.check(run)
        self.teacher.check()
        self.masking.check()
        self.align.check(run)
        self.align.check_one_way("z is the teacher's motion, which nothing here moves.")


def _of(base: RunConfig) -> GroundedConfig:
    """With the sizes, masks and the aligned layer of a base."""
    was = base.objective
    if not isinstance(was, JalaConfig):
        return GroundedConfig(perceiver=was.perceivers or PerceiverConfig())
    align = AlignConfig(layer=was.align.layer, distance="cosine", head="mlp")
    return GroundedConfig(align=align, perceiver=was.perceiver, masking=was.masking)


@GroundedConfig.variant
def grounded(base: RunConfig) -> RunConfig:
    """Aligned with the motion that inverse dynamics reads from a pair of frames; not in the papers."""
    return replace(base, objective=_of(base))


@GroundedConfig.variant
def grounded_labelled_only(base: RunConfig) -> RunConfig:
    """Its control: the same rows, aligned on labelled clips alone. What `grounded` gains over it is due to unlabelled video."""
    return override(grounded(base), {"objective.align.clips": "labelled"})


@GroundedConfig.variant
def grounded_learned(base: RunConfig) -> RunConfig:
    """The same with a teacher that learns while the run trains, for labels that are too many or too new to fit before."""
    return override(grounded(base), {"objective.teacher.form": "learned"})


@GroundedConfig.variant
def grounded_learned_labelled_only(base: RunConfig) -> RunConfig:
    """The control of `grounded_learned`."""
    return override(grounded_learned(base), {"objective.align.clips": "labelled"})
