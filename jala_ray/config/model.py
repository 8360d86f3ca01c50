"""What is trained, and the frozen encoder beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from jala_ray.config.encoders import ENCODERS

if TYPE_CHECKING:
    EncoderName = str
else:
    EncoderName = Literal[ENCODERS.names()]  # what tyro and `from_dict` take: the files of models/encoders/


@dataclass(frozen=True)
class LanguageSizes:
    """A randomly initialised Qwen2 language model; ignored when the backbone is pretrained."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 256
    rope_theta: float = 1_000_000.0
    tie_embeddings: bool = True


@dataclass(frozen=True)
class VisionSizes:
    """A randomly initialised vision transformer; ignored where weights are pretrained."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    mlp: int = 128
    patch: int = 14


@dataclass(frozen=True)
class BackboneConfig:
    """InternVL: vision tower, projector and language model (METHOD 3)."""

    pretrained: str | None = None
    """Hub name or folder, e.g. OpenGVLab/InternVL3-2B-hf; None builds a random one from the sizes below."""
    revision: str | None = None
    image_size: int = 56
    """Side of the one square tile in pixels; 448 gives 256 image tokens."""
    attention: Literal["sdpa", "eager", "flex_attention"] = "sdpa"
    freeze_vision: bool = True
    gradient_checkpointing: bool = False
    vision: VisionSizes = field(default_factory=VisionSizes)
    language: LanguageSizes = field(default_factory=LanguageSizes)


@dataclass(frozen=True)
class EncoderConfig:
    """The frozen self-supervised encoder whose features the perceivers read (METHOD 5)."""

    kind: EncoderName = "dinov3"
    """Which one: a file of models/encoders/."""
    pretrained: str | None = None
    revision: str | None = None
    image_size: int = 64
    sizes: VisionSizes = field(default_factory=lambda: VisionSizes(patch=16))


@dataclass(frozen=True)
class TextConfig:
    """The text tokenizer: a pretrained one, or a small BPE trained on the instruction templates."""

    pretrained: str | None = None
    revision: str | None = None
    vocab_size: int = 1024
    """Size of the small one; a pretrained tokenizer brings its own."""


@dataclass(frozen=True)
class ModelConfig:
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
