"""What a kind of backbone declares. The kinds lie in `models/backbones/`, a file each beside their modules; here nothing loads torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from jala_ray.registry import Registry
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from jala_ray.config.model import BackboneConfig, LanguageSizes, VisionSizes

DEFAULT = "internvl"
"""The kind of configurations, checkpoints and caches that name none: they are older than the second kind."""


@dataclass(frozen=True)
class ChatTemplate:
    """The special tokens of a backbone, and how a turn of each side is written with them (method.md 3).

    A sequence is `user_open` + question + picture + `user_close_assistant_open` + answer + `assistant_close`; a picture is `image_start`,
    `image` as often as it has tokens, `image_end`. Special tokens are spelled out in the turns.
    """

    special: tuple[str, ...]
    """All special tokens, in the order in which a small tokenizer numbers them."""
    pad: str
    end: str
    """Ends a turn, and so an answer: `assistant_close` begins with it."""
    image_start: str
    image: str
    image_end: str
    user_open: str
    user_close_assistant_open: str
    assistant_close: str


@dataclass(frozen=True)
class BackboneSizes:
    """Sizes of a model whose weights are elsewhere."""

    vision: VisionSizes
    language: LanguageSizes
    words: int
    """Size of its text vocabulary."""


@dataclass(frozen=True)
class BackboneFacts:
    """What others must know of a backbone before its weights are loaded."""

    text_vocab_size: int
    image_tokens: int
    n_layers: int


class BackboneKind:
    """A kind of backbone: its first docstring line is its line in tables. It imports torch inside `module` alone."""

    title: ClassVar[str]
    """Its name in sentences."""
    example: ClassVar[str] = ""
    """What `pretrained` could be, for remedies; of a kind without weights, nothing."""
    template: ClassVar[ChatTemplate]
    published: ClassVar[Mapping[str, BackboneSizes]] = {}
    """Hub name -> sizes, for estimates without files. What is trained is always what the files say."""
    licences: ClassVar[Mapping[str, str]] = {}
    """How hub names begin -> licence, for model cards."""

    def module(self) -> Any:
        """The class of its models, a `models.backbones.base.Backbone`."""
        raise NotImplementedError(f"{type(self).__name__} must implement module")

    def check(self, config: BackboneConfig) -> None:
        """Refuse sizes that can't be, before anything is built. Raises `ConfigError`."""
        if config.pretrained is None:
            check_sizes(config)

    def sizes(self, raw: Mapping[str, Any]) -> BackboneSizes:
        """Those that the config.json of a folder with weights describes."""
        raise ConfigError("model.backbone.pretrained", raw.get("model_type"), f"None: {self.title} has no weights")


def check_sizes(config: BackboneConfig) -> None:
    """Heads divide widths, and patches the picture. Raises `ConfigError`."""
    vision, language = config.vision, config.language
    for part, sizes in (("vision", vision), ("language", language)):
        if sizes.hidden % sizes.heads:
            raise ConfigError(f"backbone.{part}.hidden", sizes.hidden, f"a multiple of heads = {sizes.heads}")
    if language.heads % language.kv_heads:
        raise ConfigError("backbone.language.heads", language.heads, f"a multiple of kv_heads = {language.kv_heads}")
    if config.image_size % vision.patch:
        raise ConfigError("backbone.image_size", config.image_size, f"a multiple of the patch, {vision.patch} px")


def language_sizes(text: Mapping[str, Any], tied: bool) -> LanguageSizes:
    """Those that a config.json of transformers describes, by the names which its language models have in common."""
    from jala_ray.config.model import LanguageSizes

    return LanguageSizes(
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        mlp=text["intermediate_size"],
        tie_embeddings=tied,
    )


BACKBONES: Registry[type[BackboneKind]] = Registry("backbone", "jala_ray.models.backbones", "jala_ray.backbones")
