"""What an objective declares: its configuration and all that the rest asks of it without knowing its name. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jala_ray.config.checking import at_least
from jala_ray.config.encoders import refuse_pairs
from jala_ray.config.objectives._teacher import TeacherConfig
from jala_ray.registry import Registry
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from jala_ray.config.run import RunConfig

    Variant = Callable[[RunConfig], RunConfig]
else:
    Variant = Callable
"""From a base preset to a named run. Its first docstring line is its line in tables."""


@dataclass(frozen=True)
class PerceiverConfig:
    """The latent action perceiver LAP and the latent state perceiver LSP."""

    width: int = 768
    """Width of the latents and of h, which they are compared with."""
    layers: int = 2
    """Cross-attention blocks."""
    heads: int = 12
    """Attention heads per block."""
    reads: Literal["frames", "change"] = "frames"
    """Of a pair. frames: the patches of both, as one set of tokens; change: one token a patch, of what the first frame shows there and how
    the second differs, so that nothing has to be matched. Not in the papers, and only for encoders of single frames. LSP's own pair shows
    no change: where LAP's backbone only follows LSP's (`updates` decoupled or teacher), nobody learns to read one."""

    def check(self, run: RunConfig, where: str = "objective.perceiver.") -> None:
        """Raises `ConfigError`."""
        at_least(where, self, {"layers": 1, "heads": 1})
        if self.width % self.heads or self.width % 4:
            raise ConfigError(f"{where}width", self.width, "a multiple of 4 and of perceiver.heads")
        if self.reads == "change":
            refuse_pairs(
                run.model.encoder.kind, f"{where}reads change takes the first frame's features from the second's."
            )


@dataclass(frozen=True)
class MaskingConfig:
    """Hybrid masking of motion tokens: the target chunk by a drawn ratio, the chunks after it lightly."""

    ratios: tuple[float, ...] = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1.0)
    """Shares of the target chunk's tokens that are masked; each sample draws one of them."""
    after: float = 0.05
    """Probability of each token of the chunks after the target."""

    def check(self) -> None:
        """Raises `ConfigError`."""
        if not self.ratios or not all(0 < r <= 1 for r in self.ratios):
            raise ConfigError("objective.masking.ratios", self.ratios, "ratios in (0, 1]")
        if not 0 <= self.after <= 1:
            raise ConfigError("objective.masking.after", self.after, "a probability")


@dataclass(frozen=True)
class LayoutSpec:
    """What an objective wants of the token sequence; the data room reads this and never an objective's name."""

    bidirectional: bool
    """Chunks are bidirectional blocks (masked prediction) or causal (next token)."""
    masking: MaskingConfig | None
    """Tokens are masked by hybrid masking, and untracked chunks are present as [MASK]; None: neither."""
    state: Literal["mask", "prefix", "none"]
    """Where LSP latents enter: added to [MASK], as K tokens per hand before the assistant's turn, or nowhere."""
    aligned: Literal["none", "masked", "target", "all"]
    """Positions aligned with their chunk's boundary pair, which is decoded: nobody's; those of untracked chunks, and of the labelled
    target the masked ones or all; those of every chunk."""
    labels: bool = True
    """False: labelled chunks are laid out like untracked ones, as [MASK] without targets (LAPA sees no labels)."""
    reads: Literal["scored", "before", "aligned", "none"] = "scored"
    """Of motion tokens, whose last hidden states its losses read: the scored ones', the ones before those, the aligned ones', nobody's.
    Those that predict an answer's text are read in any case."""
    pixels: bool = False
    """Frames of the boundaries are in the batch, also where a cache holds their features."""

    @property
    def pairs(self) -> bool:
        """Boundary pairs of aligned chunks are decoded."""
        return self.aligned != "none"

    @property
    def frames(self) -> bool:
        """The frozen encoder's frames are needed at all."""
        return self.pairs or self.state != "none"


@dataclass(frozen=True)
class ObjectiveConfig:
    """Base of all objectives' configurations. Each kind is a frozen dataclass in a file of its own, named as its kind.

    A kind gives `kind`, `implementation` and `layout`, and overrides what differs of the rest.
    """

    kind: str = ""
    """Which objective it is; a preset decides."""

    implementation: ClassVar[str] = ""
    """`module:class` of the `objectives.base.Objective`, loaded when a model is built."""
    recipe: ClassVar[str] = "jala_ray.data.samples.hand_recipe:HandRecipe"
    """`module:class` of the `data.samples.recipe.Recipe` that makes batches of rows, loaded in data workers."""
    codes: ClassVar[bool] = True
    """Samples hold motion codes, so that a run needs a motion tokenizer."""
    variants: ClassVar[dict[str, Variant]] = {}
    """Named runs of this objective, by preset; `variant` fills it."""
    spaces: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {}
    """Search spaces over its own settings, by the name in `jala sweep --space`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.variants = {}

    @classmethod
    def variant(cls, function: Variant) -> Variant:
        """Decorator: the function makes a preset of its own name from a base, and its tiny twin."""
        cls.variants[function.__name__] = function
        return function

    @classmethod
    def of_kind(cls, kind: Any, field: str) -> type[ObjectiveConfig]:
        """The class of a kind. Raises `ConfigError` with a suggestion for an unknown one."""
        return OBJECTIVES.find(kind, field)

    def check(self, run: RunConfig) -> None:
        """Refuse what cannot work in this run, before anything starts. Raises `ConfigError`."""

    @property
    def layout(self) -> LayoutSpec:
        """What it wants of the token sequence of hand motion; nothing unless it says so."""
        if self.codes:
            raise NotImplementedError(f"{type(self).__name__} must implement layout")
        return LayoutSpec(False, None, "none", "none", labels=False, reads="none")

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that it reads. Rows without all of them are left out of its plan, and a run keeps their statistics."""
        return ()

    @property
    def perceivers(self) -> PerceiverConfig | None:
        """Sizes of the perceivers that it trains; None: it has none."""
        return None

    @property
    def taught(self) -> TeacherConfig | None:
        """The inverse-dynamics teacher that is fitted on the run's labels before its first step; None: it needs none."""
        return None

    @property
    def tokenized(self) -> bool:
        """A run needs a motion tokenizer: for the codes of its samples, or for the length of a chunk."""
        return self.codes

    @property
    def generates(self) -> bool:
        """A model trained this way predicts motion codes, so that motion can be generated from it."""
        return self.codes

    @property
    def trains_vla(self) -> bool:
        """False: only the objective's own modules learn, and nobody takes over the checkpoint's `vla`."""
        return True

    @property
    def inherits(self) -> tuple[str, ...]:
        """Modules of the objective that must come from the checkpoint `init`, made by another objective."""
        return ()

    @property
    def aligned_layer(self) -> int | None:
        """The language block whose h is trained to be z (without LAP: would be), probed by evaluations; None: no h is read."""
        return None

    @property
    def measures(self) -> tuple[str, ...]:
        """Metrics of sweeps that it has beside those of generated motion: `masked_loss`, `probe_h`."""
        return ()

    def sequence(self, picture: int, chunk: int) -> tuple[int, int] | None:
        """Tokens of every sample beside its words, and its pictures, where a picture takes so many tokens and a hand-chunk so many; None:
        it depends on the clip, as hand motion does."""
        return None

    def idle(self, key: str) -> tuple[str, str] | None:
        """What a base must have for the dotted setting `key` to change anything, and why this one has not; None: it does."""
        return None


OBJECTIVES: Registry[type[ObjectiveConfig]] = Registry("objective", "jala_ray.config.objectives", "jala_ray.objectives")
"""By kind."""
