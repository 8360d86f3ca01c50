"""Flow: a robot's next actions by flow matching, conditioned on the model's predictive embeddings (method.md 10)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from jala_ray.config.checking import at_least, check_layer
from jala_ray.config.objectives._acting import ActionHeadConfig, AugmentConfig
from jala_ray.config.objectives.base import OBJECTIVES, ObjectiveConfig, PerceiverConfig
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from jala_ray.config.run import RunConfig


@OBJECTIVES.register("flow", place=7)
@dataclass(frozen=True)
class FlowConfig(ObjectiveConfig):
    """Post-training: flow matching of a robot's next actions, by a head that reads h of a pretrained model; GR00T N1.5's head."""

    kind: Literal["flow"] = "flow"
    """Which objective it is; a preset decides."""
    state: tuple[str, ...] = ("observation.state",)
    """Signals that are the robot's state at the moment, one after another."""
    action: tuple[str, ...] = ("action",)
    """Signals that are its actions from then on, one after another."""
    views: tuple[str, ...] = ("",)
    """Cameras whose pictures of the moment the model sees; "" is a clip's own video. Empty: none, a policy of words and state."""
    embodiments: tuple[str, ...] = ()
    """Names of robots, by their numbers in the head. Empty: those whose statistics the run has, by name; of a manifest, all are one."""
    reads: Literal["chunk", "all"] = "chunk"
    """What the head attends to. chunk: h of one motion chunk that is [MASK] throughout (the papers' single forward pass); all: h of all
    words and pictures, and there is no chunk, so that no motion tokenizer is needed."""
    hands: Literal["right", "both"] = "right"
    """Whose chunk it is."""
    layer: int = 19
    """The language block whose h is read, counted from 1; blocks above it are dropped. The papers read 14, 19, 24 or 28 of 28, and 19 is
    best where it was aligned."""
    latents: Literal["none", "fixed", "learned"] = "none"
    """Whether LSP's latents of the moment's first picture are added to [MASK], as in pretraining, and whether LSP learns. Not none needs
    `init` with a checkpoint that has an LSP."""
    learns: Literal["language", "all", "head"] = "language"
    """Beside the head. language: language model and embeddings, vision tower and projector frozen (the papers'); all: these too; head:
    nothing."""
    scale: Literal["quantile", "standard"] = "quantile"
    """Of states and actions. quantile: quantiles 1 % and 99 % of the training rows become -1 and 1; standard: mean 0, deviation 1."""
    rate_hz: float | None = None
    """Actions a second; None: the data's own rate, from the median distance of its times."""
    steps: int = 4
    """Euler steps from noise to actions."""
    head: ActionHeadConfig = field(default_factory=ActionHeadConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)
    """Sizes of LSP, those of the run that `init` names."""

    implementation: ClassVar[str] = "jala_ray.objectives.flow:Flow"
    recipe: ClassVar[str] = "jala_ray.data.samples.flow_recipe:FlowRecipe"

    codes: ClassVar[bool] = False

    @property
    def tokenized(self) -> bool:
        return self.reads == "chunk"

    @property
    def signals(self) -> tuple[str, ...]:
        return (*self.state, *self.action)

    @property
    def perceivers(self) -> PerceiverConfig | None:
        return None if self.latents == "none" else self.perceiver

    @property
    def inherits(self) -> tuple[str, ...]:
        return () if self.latents == "none" else ("lsp",)

    @property
    def chunks(self) -> int:
        """Of [MASK], in a sequence."""
        return {"right": 1, "both": 2}[self.hands] if self.reads == "chunk" else 0

    def sequence(self, picture: int, chunk: int) -> tuple[int, int]:
        return len(self.views) * picture + self.chunks * chunk, len(self.views)

    def robots(self, statistics: Iterable[str]) -> tuple[str, ...]:
        """Names by number, given the names of the statistics that a run has, `EMBODIMENT:SIGNAL` or `SIGNAL`. ("",): all rows are one."""
        return self.embodiments or tuple(sorted({name.rpartition(":")[0] for name in statistics})) or ("",)

    def check(self, run: RunConfig) -> None:
        if self.tokenized and not run.motion_tokenizer:
            remedy = "Pass that of pretraining, train one with `jala tokenizer`, or set objective.reads all."
            raise ConfigError(
                "motion_tokenizer", run.motion_tokenizer, "the one whose chunks are as long as those of [MASK]", remedy
            )
        self.head.check()
        self.augment.check()
        self._check_names()
        if self.rate_hz is not None and not self.rate_hz > 0:
            raise ConfigError("objective.rate_hz", self.rate_hz, "a number > 0, or None for the data's own rate")
        at_least("objective.", self, {"steps": 1})
        if run.model.backbone.pretrained is None:
            check_layer(self.layer, run.model.backbone.language.layers, "objective.layer")
        if self.latents != "none":
            self._check_latents(run)

    def _check_names(self) -> None:
        for name in ("state", "action"):
            if not getattr(self, name) or len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ConfigError(f"objective.{name}", getattr(self, name), "names of signals, each once")
        if len(set(self.views)) < len(self.views):
            raise ConfigError("objective.views", self.views, "every camera once")
        if len(set(self.embodiments)) < len(self.embodiments) or len(self.embodiments) > self.head.embodiments:
            expected = f"at most objective.head.embodiments = {self.head.embodiments} names, each once"
            raise ConfigError("objective.embodiments", self.embodiments, expected)

    def _check_latents(self, run: RunConfig) -> None:
        self.perceiver.check(run)
        if self.reads != "chunk" or not self.views:
            expected = "none, where no chunk or no picture is read"
            raise ConfigError("objective.latents", self.latents, expected, "They are added to the chunk's [MASK].")
        if run.init is None:
            remedy = "Pass --init with a checkpoint that has an LSP, or --objective.latents none to begin without pretraining."
            raise ConfigError("init", run.init, "a checkpoint that gives LSP", remedy)
