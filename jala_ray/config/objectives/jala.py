"""JALA: masked chunk prediction and joint alignment with latent actions (method.md 4, 5), and its ablations (method.md 9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jala_ray.config.objectives._aligning import AlignConfig
from jala_ray.config.objectives.base import OBJECTIVES, LayoutSpec, MaskingConfig, ObjectiveConfig, PerceiverConfig
from jala_ray.parsing import override
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from jala_ray.config.run import RunConfig


@dataclass(frozen=True)
class EmaConfig:
    alpha: float = 0.999
    """Of the moving average by which LAP follows LSP, per step. Tied to 58.6 k steps; short runs set it so that alpha^steps <= 0.01."""
    share: float | None = None
    """Instead of alpha: the average's memory, 1 / (1 - alpha) steps, as a share of the run's steps; the paper's is 0.017. None: alpha."""

    def over(self, steps: int) -> float:
        """alpha of a run of so many steps; 0, no memory at all, where the share is less than one of them."""
        return self.alpha if self.share is None else max(0.0, 1 - 1 / (self.share * steps))

    def check(self, run: RunConfig) -> None:
        """Raises `ConfigError`."""
        if not 0.0 <= self.alpha < 1.0:
            remedy = "At 1 LAP's backbone would never move; the paper uses 0.999."
            raise ConfigError("objective.ema.alpha", self.alpha, "0 <= alpha < 1", remedy)
        if self.share is None:
            return
        if not 0 < self.share <= 1:
            expected = "a share of the run's steps, above 0 and at most 1, or None for alpha"
            raise ConfigError("objective.ema.share", self.share, expected, "The paper's is 0.017.")
        steps = run.train.steps
        if steps is not None and self.share * steps < 1:
            remedy = f"Of {steps} steps this is less than one; the average would remember nothing."
            raise ConfigError("objective.ema.share", self.share, f"at least {1 / steps:g}", remedy)


@OBJECTIVES.register("jala", place=1)
@dataclass(frozen=True)
class JalaConfig(ObjectiveConfig):
    """Masked chunk prediction with LSP, and joint alignment with LAP's latent actions."""

    kind: Literal["jala"] = "jala"
    """Which objective it is; a preset decides."""
    mcp: bool = True
    """False: alignment alone (`align_only`). Masks stay as they are, no code is predicted, the motion head is frozen."""
    lap: bool = True
    """False: no alignment at all (`no_align`)."""
    updates: Literal["decoupled", "gradient", "teacher", "fixed"] = "decoupled"
    """Decoupled: eqs. 6, 7; without LSP, LAP's backbone stays at its start. Gradient: both perceivers learn by their own
    gradients, no EMA. Teacher: LSP learns whole, by gradient through the VLM; LAP follows it whole, by EMA, so that no gradient of
    alignment reaches z (as in BYOL and DINO). Fixed: LSP learns whole, LAP stays at its start, a random projection of the features."""
    state: Literal["mask", "prefix", "none"] = "mask"
    """Where LSP's latents enter; none: there is no LSP (`no_lsp`)."""
    align: AlignConfig = field(default_factory=AlignConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)

    implementation: ClassVar[str] = "jala_ray.objectives.jala:Jala"
    spaces: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "lambda_alpha_layer": {
            "objective.align.weight": {"log_around": 10},
            "objective.ema.alpha": {"one_minus_log_around": 10},
            "objective.align.layer": {"layer": True},
        },
        "masking": {
            "objective.masking.after": {"uniform": [0.0, 0.5]},
            "objective.masking.ratios": {"choice": [[1.0], [0.5, 1.0], [0.25, 0.5, 0.75, 1.0], [0.05, 0.15, 0.5, 1.0]]},
        },
        "schedule": {
            "objective.align.schedule": {"choice": ["constant", "warmup", "decay"]},
            "objective.align.schedule_share": {"uniform": [0.05, 0.5]},
        },
    }

    @property
    def layout(self) -> LayoutSpec:
        aligned = self.align.positions if self.lap else "none"
        return LayoutSpec(True, self.masking, self.state, aligned, reads="scored" if self.mcp else "none")

    @property
    def generates(self) -> bool:
        return self.mcp

    @property
    def perceivers(self) -> PerceiverConfig:
        return self.perceiver

    @property
    def aligned_layer(self) -> int:
        return self.align.layer

    @property
    def measures(self) -> tuple[str, ...]:
        return ("masked_loss", "probe_h") if self.mcp else ("probe_h",)

    def idle(self, key: str) -> tuple[str, str] | None:
        if key.startswith(("objective.align.", "objective.ema.")) and not self.lap:
            return "a base that aligns", "This preset has no LAP, so the setting changes nothing."
        if key.startswith("objective.ema.") and self.updates not in ("decoupled", "teacher"):
            return "a base with EMA", f"objective.updates is {self.updates}, so alpha changes nothing."
        if key == "objective.ema.alpha" and self.ema.share is not None:
            return "a base without objective.ema.share", f"It is {self.ema.share:g}, and alpha follows from it."
        return None

    def check(self, run: RunConfig) -> None:
        self.perceiver.check(run)
        self.ema.check(run)
        self.align.check(run)
        if not self.mcp and not (self.lap and self.align.weight):
            remedy = (
                "Without codes to predict, alignment is all there is: set objective.lap and objective.align.weight."
            )
            raise ConfigError("objective.mcp", self.mcp, "True, or an alignment that trains", remedy)
        if self.align.direction == "anchored" and self.lap and self.updates not in ("decoupled", "gradient"):
            remedy = "On labelled chunks LAP alone learns: set objective.updates to gradient, or to decoupled for its queries alone."
            raise ConfigError("objective.updates", self.updates, "a LAP that learns by gradient", remedy)
        if self.updates == "teacher" and self.lap and self.state == "none":
            remedy = "Set objective.state to mask or prefix."
            raise ConfigError("objective.updates", self.updates, "an LSP that LAP can follow", remedy)
        self.masking.check()


@JalaConfig.variant
def vjepa(base: RunConfig) -> RunConfig:
    """V-JEPA 2 features of frame pairs instead of DINOv3 features of frames."""
    pretrained = "facebook/vjepa2-vitl-fpc64-256" if base.model.encoder.pretrained else None
    size = 256 if pretrained else base.model.encoder.image_size
    return override(
        base,
        {
            "model.encoder.kind": "vjepa2",
            "model.encoder.pretrained": pretrained,
            "model.encoder.image_size": size,
        },
    )


@JalaConfig.variant
def no_align(base: RunConfig) -> RunConfig:
    """Masked chunk prediction alone, no latent actions: lambda = 0, no LAP, LSP queries get the gradient."""
    return override(base, {"objective.lap": False, "objective.updates": "gradient", "objective.align.weight": 0.0})


@JalaConfig.variant
def no_decoupling(base: RunConfig) -> RunConfig:
    """Both perceivers learn by their own gradients, no EMA."""
    return override(base, {"objective.updates": "gradient"})


@JalaConfig.variant
def ema_teacher(base: RunConfig) -> RunConfig:
    """LAP is LSP's moving average and nothing else, so that alignment can't make its own target easy to predict."""
    return override(base, {"objective.updates": "teacher"})


@JalaConfig.variant
def change(base: RunConfig) -> RunConfig:
    """Aligned with what moving adds to z, in direction; not in the papers."""
    return override(base, {"objective.align.target": "change", "objective.align.distance": "cosine"})


@JalaConfig.variant
def change_fixed(base: RunConfig) -> RunConfig:
    """The same with a LAP that never learns: the change of the frozen features, projected at random."""
    return override(change(base), {"objective.updates": "fixed"})


@JalaConfig.variant
def change_head(base: RunConfig) -> RunConfig:
    """`change_fixed`, but what is compared is a projection of h, not h itself."""
    return override(change_fixed(base), {"objective.align.head": "mlp"})


@JalaConfig.variant
def jala_literal(base: RunConfig) -> RunConfig:
    """Eq. 3 as it is printed: summed over the width, at all positions of all chunks; lambda 0.5."""
    changes = {"objective.align.reduction": "sum", "objective.align.positions": "all", "objective.align.weight": 0.5}
    return override(base, changes)


@JalaConfig.variant
def anchored(base: RunConfig) -> RunConfig:
    """On labelled chunks LAP, by its own gradient whole, follows h; on untracked ones h follows LAP."""
    return override(base, {"objective.align.direction": "anchored", "objective.updates": "gradient"})


@JalaConfig.variant
def aligned_labelled_only(base: RunConfig) -> RunConfig:
    """JALA whose alignment counts on labelled clips alone: the control for what unlabelled video adds to it, with the same rows a step."""
    return override(base, {"objective.align.clips": "labelled"})


@JalaConfig.variant
def no_lsp(base: RunConfig) -> RunConfig:
    """Plain [MASK], no latents of the first frame; LAP's backbone stays at its start, its queries learn."""
    return override(base, {"objective.state": "none"})


@JalaConfig.variant
def align_only(base: RunConfig) -> RunConfig:
    """Alignment alone, no masked chunk prediction, with the same masks. Judged by probes, it can't generate."""
    return override(base, {"objective.mcp": False})


@JalaConfig.variant
def labelled_only(base: RunConfig) -> RunConfig:
    """JALA without the clips that have no hand poses."""
    return override(base, {"data.labels": "labelled_only"})
