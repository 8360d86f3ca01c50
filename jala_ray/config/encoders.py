"""What a kind of frozen encoder declares. The kinds lie in `models/encoders/`, a file each; here nothing loads torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from jala_ray.registry import Registry
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from jala_ray.config.model import EncoderConfig


@dataclass(frozen=True)
class EncoderFacts:
    """What the rest must know of an encoder's model."""

    dim: int
    """Width Dv of a patch's features."""
    patch: int
    """Side of a patch, px."""
    architecture: dict[str, Any]
    """What `EncoderKind.make` rebuilds the model from, JSON-able."""


class EncoderKind:
    """A kind of frozen encoder: its first docstring line is its line in tables. Kinds import torch inside their methods.

    Models are `nn.Module`s; `FrameEncoder` freezes them, checks what they are given and knows their grid.
    """

    pairs: ClassVar[bool] = False
    """It reads two frames as one clip and gives features of the pair; else features of each frame alone."""
    preprocessing: ClassVar[int] = 1
    """Version of the way from pixels to features. Raise it when that changes: caches made before are then refused."""

    def check(self, config: EncoderConfig) -> None:
        """Refuse sizes that can't be, before anything is built. Raises `ConfigError`."""

    def load(self, config: EncoderConfig, name: str) -> nn.Module:
        """Weights from the hub or a folder, in float32. Raises `ConfigError`."""
        raise ConfigError("model.encoder.pretrained", name, f"None: {config.kind} has no pretrained weights")

    def make(self, config: EncoderConfig, stored: dict[str, Any] | None) -> nn.Module:
        """A model of random weights: of `config.sizes`, or of the stored architecture (`EncoderFacts.architecture`)."""
        raise NotImplementedError(f"{type(self).__name__} must implement make")

    def facts(self, model: nn.Module) -> EncoderFacts:
        raise NotImplementedError(f"{type(self).__name__} must implement facts")

    def features(self, model: nn.Module, frames: Tensor) -> Tensor:
        """uint8 RGB frames (F, 3, S, S), or pairs (C, 2, 3, S, S), of at least one -> (F or C, P, Dv) float32.

        Patches are row-major, without class or register tokens.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement features")


ENCODERS: Registry[type[EncoderKind]] = Registry("encoder", "jala_ray.models.encoders", "jala_ray.encoders")


def refuse_pairs(kind: str, why: str) -> None:
    """Refuse a kind that gives features of pairs of frames, where those of single frames are needed. Raises `ConfigError`."""
    if ENCODERS.find(kind).pairs:
        of_frames = " or ".join(name for name, encoder in ENCODERS.items() if not encoder.pairs)
        raise ConfigError("model.encoder.kind", kind, of_frames, f"{why} {kind} gives those of pairs.")
