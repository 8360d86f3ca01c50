"""Sizes of an action head, and how pictures are changed while it learns."""

from __future__ import annotations

from dataclasses import dataclass

from jala_ray.config.checking import at_least
from jala_ray.types import ConfigError


@dataclass(frozen=True)
class ActionHeadConfig:
    """A diffusion transformer over a robot's state and its noised actions, with the sizes of GR00T N1.5 but for its width."""

    width: int = 2048
    """Of its tokens. The paper prints 2048; GR00T N1.5 itself has 1536."""
    layers: int = 16
    """Blocks: those at even places, from 0, attend to the condition, the others to the head's own tokens."""
    heads: int = 32
    """Attention heads of a block."""
    hidden: int = 1024
    """Inside the state's encoder and the decoder, and of what the blocks give to the latter."""
    state_dim: int = 64
    """Numbers of a state, at most; shorter ones are filled with zeros."""
    action_dim: int = 32
    """Numbers of an action, likewise."""
    horizon: int = 16
    """Actions that are predicted at once."""
    embodiments: int = 32
    """Robots with encoders and decoders of their own, at most. Only those that a run has learn."""
    future_tokens: int = 32
    """Learned tokens between state and actions; 0: none."""
    condition_layers: int = 4
    """Self-attention blocks over the condition, after a LayerNorm; 0: neither."""
    dropout: float = 0.2
    """Of what every attention and every MLP adds. Its masks follow from seed, epoch and plan row."""
    time_buckets: int = 1000
    """Steps into which flow time is cut where it is embedded."""

    def check(self) -> None:
        """Raises `ConfigError`."""
        counts = ("width", "layers", "heads", "hidden", "state_dim", "action_dim", "horizon", "embodiments")
        rest = {"future_tokens": 0, "condition_layers": 0, "dropout": 0, "time_buckets": 1}
        at_least("objective.head.", self, dict.fromkeys(counts, 1) | rest)
        if self.width % self.heads or self.width % 2:
            raise ConfigError("objective.head.width", self.width, f"an even multiple of heads = {self.heads}")
        if self.dropout >= 1:
            raise ConfigError("objective.head.dropout", self.dropout, "0 <= dropout < 1")


@dataclass(frozen=True)
class AugmentConfig:
    """How the pictures of a training sample are changed, all of them alike; held-out samples and policies see them as they are."""

    on: bool = True
    """Whether they are."""
    crop: float = 0.95
    """Share of each side that a crop at a drawn place keeps; it is brought back to the whole size. 1: none."""
    rotation: float = 5.0
    """Degrees to either side, at most."""
    brightness: float = 0.3
    """Its factor lies between 1 minus and 1 plus so much."""
    contrast: float = 0.4
    """Likewise."""
    saturation: float = 0.5
    """Likewise."""
    hue: float = 0.08
    """Turns of the colour circle to either side, at most."""

    def check(self) -> None:
        """Raises `ConfigError`."""
        at_least("objective.augment.", self, dict.fromkeys(("rotation", "brightness", "contrast", "saturation"), 0))
        if not 0 < self.crop <= 1:
            raise ConfigError("objective.augment.crop", self.crop, "a share of the side, above 0 and at most 1")
        if max(self.brightness, self.contrast, self.saturation) > 1 or not 0 <= self.hue <= 0.5:
            raise ConfigError("objective.augment", self, "colour changes of at most 1, and of hue at most 0.5")
