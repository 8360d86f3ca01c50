"""Posterior: a second pass that sees where each chunk leads, and h of the first that follows it (method.md 5, Posterior)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from jala_ray.config.encoders import ENCODERS
from jala_ray.config.objectives._aligned import AlignedObjective
from jala_ray.config.objectives._aligning import AlignConfig
from jala_ray.config.objectives.base import OBJECTIVES, MaskingConfig, PerceiverConfig
from jala_ray.config.objectives.jala import JalaConfig
from jala_ray.parsing import override

if TYPE_CHECKING:
    from jala_ray.config.run import RunConfig


@OBJECTIVES.register("posterior", place=6)
@dataclass(frozen=True)
class PosteriorConfig(AlignedObjective):
    """Masked chunk prediction twice over, the second time with latents of each chunk's own pair, and h that follows the second's."""

    kind: Literal["posterior"] = "posterior"
    """Which objective it is; a preset decides."""
    state: Literal["mask", "prefix", "none"] = "mask"
    """Where LSP's latents enter; none: there is no LSP. The pair's latents are always those of [MASK]."""
    align: AlignConfig = field(default_factory=lambda: AlignConfig(distance="cosine"))
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)
    """Sizes of LSP and of the perceiver of pairs, and what the latter reads; LSP, whose pair shows no change, reads frames."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)

    implementation: ClassVar[str] = "jala_ray.objectives.posterior:Posterior"

    def check(self, run: RunConfig) -> None:
        self.perceiver.check(run)
        self.masking.check()
        self.align.check(run)
        self.align.check_one_way("h follows that of the second pass, which stands still.")


def _of(base: RunConfig) -> PosteriorConfig:
    """With the sizes, masks and the aligned layer of a base. Pairs are read by their change, where the encoder tells it."""
    was, of_pairs = base.objective, ENCODERS.find(base.model.encoder.kind).pairs
    perceiver = replace(was.perceivers or PerceiverConfig(), reads="frames" if of_pairs else "change")
    if not isinstance(was, JalaConfig):
        return PosteriorConfig(perceiver=perceiver)
    align = AlignConfig(layer=was.align.layer, distance="cosine")
    return PosteriorConfig(align=align, perceiver=perceiver, masking=was.masking)


@PosteriorConfig.variant
def posterior(base: RunConfig) -> RunConfig:
    """Experimental until its second pass is seen to read the pair: h follows that of a pass that sees it; after Being-H0.7."""
    # Both passes keep their activations at once.
    micro_tokens = max(base.data.max_tokens, base.train.micro_tokens // 2)
    return override(replace(base, objective=_of(base)), {"train.micro_tokens": micro_tokens})


@PosteriorConfig.variant
def posterior_labelled_only(base: RunConfig) -> RunConfig:
    """Its control: the same rows and passes, aligned on labelled clips alone. What `posterior` gains over it is due to unlabelled video."""
    return override(posterior(base), {"objective.align.clips": "labelled"})
