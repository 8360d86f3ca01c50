"""What a model learns by: JALA, next-token prediction, latent actions, and their parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class PerceiverConfig:
    """The latent action perceiver LAP and the latent state perceiver LSP."""

    width: int = 768
    """Width of the latents and of h, which they are compared with."""
    layers: int = 2
    """Cross-attention blocks."""
    heads: int = 12
    """Attention heads per block."""


@dataclass(frozen=True)
class MaskingConfig:
    """Hybrid masking of motion tokens: the target chunk by a drawn ratio, the chunks after it lightly."""

    ratios: tuple[float, ...] = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1.0)
    """Shares of the target chunk's tokens that are masked; each sample draws one of them."""
    after: float = 0.05
    """Probability of each token of the chunks after the target."""


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
    positions: Literal["masked", "target"] = "masked"
    """In the labelled target: only its masked positions (decision), or all of them (eq. 3)."""
    target: Literal["latent", "change"] = "latent"
    """What h is compared with: z of the pair, or what moving adds to it, z(v_t, v_{t+delta}) - z(v_t, v_t). Not in the papers: most of
    what a pair shows stands still, and z tells of that."""
    distance: Literal["l1", "cosine"] = "l1"
    """l1: eq. 3, averaged over dimensions. cosine: 1 - cos(h, target), whatever their lengths, as LARA."""
    head: Literal["none", "mlp"] = "none"
    """none: h itself is compared (eq. 3). mlp: what two layers of alignment's own make of it, as REPA's projector, so that h is free
    to hold other things."""


@dataclass(frozen=True)
class EmaConfig:
    alpha: float = 0.999
    """Of the moving average by which LAP follows LSP, per step. Tied to 58.6 k steps; short runs set it so that alpha^steps <= 0.01."""


@dataclass(frozen=True)
class LayoutSpec:
    """What an objective wants of the token sequence; the data room reads this and never an objective's name."""

    bidirectional: bool
    """Chunks are bidirectional blocks (masked prediction) or causal (next token)."""
    masking: MaskingConfig | None
    """Tokens are masked by hybrid masking, and untracked chunks are present as [MASK]; None: neither."""
    state: Literal["mask", "prefix", "none"]
    """Where LSP latents enter: added to [MASK], as K tokens a hand before the assistant's turn, or nowhere."""
    pairs: bool
    """Boundary pairs of aligned chunks are decoded."""
    align_all_target: bool = False
    labels: bool = True
    """False: labelled chunks are laid out like untracked ones, as [MASK] without targets (LAPA sees no labels)."""

    @property
    def frames(self) -> bool:
        """The frozen encoder's frames are needed at all."""
        return self.pairs or self.state != "none"


class ObjectiveTraits:
    """What the rest may ask of any objective's configuration without knowing its name; a kind overrides what differs.

    Beside these every kind has `layout` and `perceiver`.
    """

    @property
    def generates(self) -> bool:
        """A model trained this way predicts motion codes, so that motion can be generated from it."""
        return True

    @property
    def trains_vla(self) -> bool:
        """False: only the objective's own modules learn, and nobody takes over the checkpoint's `vla`."""
        return True

    @property
    def inherits(self) -> tuple[str, ...]:
        """Modules of the objective that must come from the checkpoint `init`, made by another objective."""
        return ()


@dataclass(frozen=True)
class JalaConfig(ObjectiveTraits):
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

    @property
    def layout(self) -> LayoutSpec:
        return LayoutSpec(True, self.masking, self.state, self.lap, self.align.positions == "target")

    @property
    def generates(self) -> bool:
        return self.mcp


@dataclass(frozen=True)
class NextTokenConfig(ObjectiveTraits):
    """Being-H0: next-token prediction of motion tokens on labelled data, optionally with LSP features as a prefix."""

    kind: Literal["next_token"] = "next_token"
    """Which objective it is; a preset decides."""
    state: Literal["none", "prefix"] = "none"
    """Where LSP's latents of the first frame enter: nowhere, or as a prefix."""
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)

    @property
    def layout(self) -> LayoutSpec:
        return LayoutSpec(False, None, self.state, False)


@dataclass(frozen=True)
class LatentActionConfig:
    """Discrete latent actions of a pair of frames; by default as many as LAPA's, 8^4."""

    tokens: int = 4
    """Codes a pair; each has a codebook of its own."""
    codes: int = 8
    """Vectors a codebook."""
    width: int = 32
    """Of a code's vector."""
    commitment: float = 0.25
    """Weight of the commitment loss."""
    decay: float = 0.99
    """EMA decay of the codebooks, an optimizer step."""


@dataclass(frozen=True)
class LapaActionsConfig(ObjectiveTraits):
    """LAPA-dagger, first stage: inverse and forward dynamics over frozen features, codes learned by reconstruction."""

    kind: Literal["lapa_actions"] = "lapa_actions"
    """Which objective it is; a preset decides."""
    actions: LatentActionConfig = field(default_factory=LatentActionConfig)
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)
    """Sizes of the inverse and of the forward model."""

    @property
    def layout(self) -> LayoutSpec:
        return LayoutSpec(True, MaskingConfig(), "none", True, labels=False)

    @property
    def generates(self) -> bool:
        return False

    @property
    def trains_vla(self) -> bool:
        return False


@dataclass(frozen=True)
class LapaCodesConfig(ObjectiveTraits):
    """LAPA-dagger, second stage: the VLA predicts the codes that the first stage's model (`init`) gives to every chunk."""

    kind: Literal["lapa_codes"] = "lapa_codes"
    """Which objective it is; a preset decides."""
    actions: LatentActionConfig = field(default_factory=LatentActionConfig)
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)
    """As in the first stage."""

    @property
    def layout(self) -> LayoutSpec:
        return LayoutSpec(True, MaskingConfig(), "none", True, labels=False)

    @property
    def generates(self) -> bool:
        return False

    @property
    def inherits(self) -> tuple[str, ...]:
        return ("actions",)


ObjectiveConfig = JalaConfig | NextTokenConfig | LapaActionsConfig | LapaCodesConfig
