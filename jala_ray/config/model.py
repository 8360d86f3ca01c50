"""What is trained, and the frozen encoder beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from jala_ray.config.backbones import BACKBONES, DEFAULT
from jala_ray.config.checking import at_least
from jala_ray.config.encoders import ENCODERS

if TYPE_CHECKING:
    BackboneName = EncoderName = str
else:
    BackboneName = Literal[BACKBONES.names()]  # the names of models/backbones/
    EncoderName = Literal[ENCODERS.names()]  # what tyro and `from_dict` take: the files of models/encoders/


@dataclass(frozen=True)
class LanguageSizes:
    """A randomly initialised language model; ignored when the backbone is pretrained."""

    hidden: int = 128
    """Width of the residual stream."""
    layers: int = 4
    """Blocks."""
    heads: int = 4
    """Attention heads per block."""
    kv_heads: int = 2
    """Heads of keys and values, shared by groups of attention heads."""
    mlp: int = 256
    """Width inside a block's MLP."""
    rope_theta: float = 1_000_000.0
    """Base of the rotary position embedding."""
    tie_embeddings: bool = True
    """Input embeddings and output head are one matrix."""


@dataclass(frozen=True)
class VisionSizes:
    """A randomly initialised vision transformer; ignored where weights are pretrained."""

    hidden: int = 64
    """Width of the residual stream."""
    layers: int = 2
    """Blocks."""
    heads: int = 4
    """Attention heads per block."""
    mlp: int = 128
    """Width inside a block's MLP."""
    patch: int = 14
    """Side of a patch, px."""


@dataclass(frozen=True)
class LoraConfig:
    """Adapters beside the linear layers of the language model's blocks (LoRA, arXiv 2106.09685): W x + b + alpha / rank * B A x.

    With them the language model's matrices, biases and text embeddings keep their weights; its norms, the projector, and all that is
    the VLA's or the objective's own learn as without.
    """

    rank: int = 0
    """Rows of A and columns of B; 0: no adapters, the language model learns whole."""
    alpha: float | None = None
    """Strength of what adapters add; None: twice the rank."""
    layers: tuple[str, ...] = ()
    """Linear layers that have one, by the last part of their names: q_proj v_proj; empty: all of a block's."""

    @property
    def scale(self) -> float:
        """Factor of B A x. There must be adapters."""
        return 2.0 if self.alpha is None else self.alpha / self.rank

    def check(self) -> None:
        """Raises `ConfigError`."""
        at_least("model.backbone.lora.", self, {"rank": 0})
        if self.alpha is not None:
            at_least("model.backbone.lora.", self, {"alpha": 0})


@dataclass(frozen=True)
class BackboneConfig:
    """Vision tower, projector and language model. What a kind has beside these sizes, it derives from them or reads from its files."""

    kind: BackboneName = DEFAULT
    """InternVL 3 (internvl), Qwen2.5-VL (qwen2_5_vl); a file of models/backbones/ is a kind."""
    pretrained: str | None = None
    """Hub name or folder, e.g. OpenGVLab/InternVL3-2B-hf; None builds a random one from the sizes below."""
    revision: str | None = None
    """Of the hub repository: branch, tag or commit; None: its newest."""
    image_size: int = 56
    """Side of the one square tile in pixels; 448 gives 256 image tokens."""
    attention: Literal["auto", "sdpa", "eager", "flex_attention"] = "auto"
    """Kernels of attention: on a GPU FlexAttention over blocks of tokens (flex_attention), on a CPU torch's own, one sample at a time
    (sdpa); auto chooses. eager spells every product out."""
    freeze_vision: bool = True
    """The vision tower keeps its weights."""
    gradient_checkpointing: bool = False
    """Activations of the blocks are computed again in the backward pass: less memory, about a third more compute."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    vision: VisionSizes = field(default_factory=VisionSizes)
    language: LanguageSizes = field(default_factory=LanguageSizes)

    def check(self) -> None:
        """Raises `ConfigError` for a kind that is not known, or sizes that it can't have."""
        BACKBONES.find(self.kind, "model.backbone.kind")().check(self)
        self.lora.check()


@dataclass(frozen=True)
class EncoderConfig:
    """The frozen self-supervised encoder whose features the perceivers read."""

    kind: EncoderName = "dinov3"
    """Features of single frames (dinov3) or of frame pairs (vjepa2); a file of models/encoders/ is a kind."""
    pretrained: str | None = None
    """Hub name or folder; None builds a random one from the sizes below."""
    revision: str | None = None
    """Of the hub repository: branch, tag or commit; None: its newest."""
    image_size: int = 64
    """Side of a square frame, px."""
    sizes: VisionSizes = field(default_factory=lambda: VisionSizes(patch=16))

    def check(self) -> None:
        """Raises `ConfigError` for a kind that is not known, or sizes that it can't have."""
        ENCODERS.find(self.kind, "model.encoder.kind")().check(self)


@dataclass(frozen=True)
class TextConfig:
    """The text tokenizer: a pretrained one, or a small BPE trained on the instruction templates."""

    pretrained: str | None = None
    """Hub name or folder; None trains a small one."""
    revision: str | None = None
    """Of the hub repository: branch, tag or commit; None: its newest."""
    vocab_size: int = 1024
    """Size of the small one; a pretrained tokenizer brings its own."""


@dataclass(frozen=True)
class ModelConfig:
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
