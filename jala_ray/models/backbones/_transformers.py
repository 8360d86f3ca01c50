"""What the kinds share whose models are the transformers library's: weights, growing vocabularies, attention, names in files."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import eager_attention_forward, rotate_half

from jala_ray.config import BackboneConfig, LanguageSizes
from jala_ray.config.backbones import BACKBONES, BackboneFacts
from jala_ray.models.attention import NAME, Allowed
from jala_ray.models.backbones.base import Backbone, KVCache
from jala_ray.models.masks import Intervals
from jala_ray.models.pretrained import Pretrained
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from jala_ray.models.text import TextTokenizer

FIELD = "backbone.pretrained"
MAX_POSITIONS = 32_768
"""Positions a random language model's configuration declares; rotary positions need no table."""


def qwen2_sizes(language: LanguageSizes, text_vocab_size: int) -> dict[str, Any]:
    """What the configuration of a random Qwen2 says, whatever its positions."""
    return {
        "vocab_size": text_vocab_size,
        "hidden_size": language.hidden,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "intermediate_size": language.mlp,
        "max_position_embeddings": MAX_POSITIONS,
        # The usual 0.02 is about 1 / sqrt(hidden) of a full-size model; narrow ones learn slowly with it.
        "initializer_range": language.hidden**-0.5,
    }


class TransformersBackbone(Backbone):
    """Four parts: `vision`, `projector`, `language` and, when embeddings are untied, `output`."""

    config_class: ClassVar[type[PreTrainedConfig]]
    model_class: ClassVar[type[PreTrainedModel]]
    hub_names: ClassVar[dict[str, str]]
    """Parts -> how their tensors begin in files on the hub."""
    vision: nn.Module
    projector: nn.Module
    language: Any
    output: nn.Module | None

    def __init__(self, model: Any, config: BackboneConfig) -> None:
        super().__init__()
        self.config, self.hf_config = config, model.config
        self.vision, self.projector, self.language = self.split(model)
        tied = model.lm_head.weight is self.language.embed_tokens.weight
        self.output = None if tied else model.lm_head
        text = model.config.text_config
        self.sizes = LanguageSizes(
            text.hidden_size,
            len(self.language.layers),
            text.num_attention_heads,
            text.num_key_value_heads,
            text.intermediate_size,
            text.rope_parameters["rope_theta"],
            tied,
        )
        self._last_block: Any = last_block
        self.patches = (config.image_size // self.patch(model.config)) ** 2
        self.image_tokens = self.tokens(config, model.config)

    # --- what a kind says -------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def random_config(cls, config: BackboneConfig, text_vocab_size: int) -> Any:
        """The library's configuration at the sizes of `config.vision` and `config.language`, which the kind has checked."""

    @classmethod
    @abstractmethod
    def prepared(cls, hf: Any) -> Any:
        """Switch dropout off, and refuse what this backbone doesn't run. Raises `ConfigError`."""

    @classmethod
    @abstractmethod
    def patch(cls, hf: Any) -> int:
        """Side of a patch, px."""

    @classmethod
    @abstractmethod
    def fold(cls, hf: Any) -> int:
        """So many by so many neighbouring patches become a token."""

    @abstractmethod
    def split(self, model: Any) -> tuple[nn.Module, nn.Module, Any]:
        """Vision tower, projector, language model."""

    # --- building -------------------------------------------------------------------------------------------

    @classmethod
    def make(
        cls, config: BackboneConfig, stored: dict[str, Any] | None, text_vocab_size: int | None
    ) -> TransformersBackbone:
        if stored is not None:
            model: Any = cls.model_class(cls.prepared(cls.config_class.from_dict(stored)))
        elif (files := cls.source(config)) is not None:
            model = cls.load(files)
        else:
            assert text_vocab_size is not None
            model = cls.model_class(cls.at_random(config, text_vocab_size))
        if text_vocab_size is not None and text_vocab_size > model.config.text_config.vocab_size:
            model.resize_token_embeddings(text_vocab_size, mean_resizing=False)
        # The vision tower needs no mask.
        eager = config.attention == "eager"
        words = {"text_config": "eager" if eager else NAME, "vision_config": "eager" if eager else "sdpa"}
        model.set_attn_implementation(words)
        return cls(model, config)

    @classmethod
    def source(cls, config: BackboneConfig) -> Pretrained | None:
        """Where a pretrained backbone's files lie."""
        remedy = f"Give a hub name or folder in the transformers format, e.g. {BACKBONES.find(config.kind).example}."
        return None if config.pretrained is None else Pretrained(FIELD, config.pretrained, config.revision, remedy)

    @classmethod
    def load(cls, files: Pretrained) -> Any:
        """Weights and configuration, in float32. Raises `ConfigError`."""
        model = files.load(cls.model_class, config=cls.prepared(files.config(cls.config_class)))
        # Whether the head is the embedding is what the weights say: many a config.json is silent, and the library then takes it for tied.
        # Said here, before the embedding grows, which would tie them; a checkpoint's architecture keeps it.
        tied = model.lm_head.weight is model.model.language_model.embed_tokens.weight
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = tied
        return model

    @classmethod
    def at_random(cls, config: BackboneConfig, text_vocab_size: int) -> Any:
        """`random_config`, checked. Raises `ConfigError`."""
        BACKBONES.find(config.kind)().check(config)
        return cls.prepared(cls.random_config(config, text_vocab_size))

    @classmethod
    def facts(cls, config: BackboneConfig, text_vocab_size: int) -> BackboneFacts:
        files = cls.source(config)
        hf = cls.at_random(config, text_vocab_size) if files is None else cls.prepared(files.config(cls.config_class))
        text = hf.text_config
        words = max(text.vocab_size, text_vocab_size)
        return BackboneFacts(words, cls.tokens(config, hf), text.num_hidden_layers)

    @classmethod
    def tokens(cls, config: BackboneConfig, hf: Any) -> int:
        """Tokens of a picture. Raises `ConfigError` for a size of pictures that patches don't fill."""
        patch, fold = cls.patch(hf), cls.fold(hf)
        if config.image_size % (patch * fold):
            title = BACKBONES.find(config.kind).title
            remedy = f"{title} folds {fold} x {fold} patches of {patch} px into one token."
            raise ConfigError("backbone.image_size", config.image_size, f"a multiple of {patch * fold}", remedy)
        return (config.image_size // patch // fold) ** 2

    def hf_config_dict(self) -> dict[str, Any]:
        return self.hf_config.to_dict()

    def shorten(self, layers: int) -> None:
        super().shorten(layers)
        text = self.hf_config.text_config
        text.num_hidden_layers = layers
        text.layer_types = text.layer_types[:layers]

    # --- as files of others -----------------------------------------------------------------------------------

    @classmethod
    def hub_name(cls, name: str) -> str:
        part, _, rest = name.partition(".")
        return f"{cls.hub_names[part]}.{rest}"

    @classmethod
    def own_name(cls, name: str) -> str:
        longest = sorted(cls.hub_names.items(), key=lambda item: -len(item[1]))
        part, prefix = next((part, prefix) for part, prefix in longest if name.startswith(f"{prefix}."))
        return part + name[len(prefix) :]

    @classmethod
    def describe(cls, folder: Path, architecture: dict[str, Any], text: TextTokenizer, precision: str) -> None:
        hf: Any = cls.config_class.from_dict(architecture)
        hf.architectures = [cls.model_class.__name__]
        hf.dtype = getattr(torch, precision)
        for name, value in cls.token_ids(text).items():
            setattr(hf, name, value)
        hf.save_pretrained(folder)

    @classmethod
    def token_ids(cls, text: TextTokenizer) -> dict[str, int]:
        """Special tokens that the library's configuration names, as this tokenizer has them."""
        return {"image_token_id": text.img_context}

    # --- parts ------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, nn.Module]:
        named = {
            "vision": self.vision,
            "projector": self.projector,
            "language": self.language,
            "output": self.output,
        }
        return {name: module for name, module in named.items() if module is not None}

    @property
    def words(self) -> nn.Embedding:
        return self.language.embed_tokens

    @property
    def blocks(self) -> nn.ModuleList:
        return self.language.layers

    @property
    def head(self) -> Tensor:
        return cast("Tensor", (self.output or self.words).weight)

    def norm(self, x: Tensor) -> Tensor:
        return self.language.norm(x)

    def block_arguments(self, x: Tensor, mask: Allowed, position_ids: Tensor, cache: KVCache | None) -> dict[str, Any]:
        # A mask handed to a block is never None, so no attention kernel falls back to its own causal one.
        return {
            "attention_mask": self._prepared_mask(mask, x),
            "position_embeddings": self.rotation(x, position_ids),
            "past_key_values": cache,
        }

    def rotation(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, T, d) of the positions."""
        return self.language.rotary_emb(x, position_ids)

    def _prepared_mask(self, mask: Allowed, x: Tensor) -> Allowed:
        if self.config.attention != "eager" or not isinstance(mask, Tensor):
            return mask
        return torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill_(~mask, torch.finfo(x.dtype).min)

    def compile_blocks(self, backend: str = "inductor") -> None:
        super().compile_blocks(backend)
        self._last_block = torch.compile(last_block, dynamic=True, backend=backend)

    def run_last_block(self, x: Tensor, mask: Intervals, position_ids: Tensor, read: Tensor) -> Tensor:
        allowed = self._prepared_mask(self.form(mask.at(read), x.device), x)
        return self.run_block(self._last_block, self.blocks[-1], x, read, allowed, self.rotation(x, position_ids))


def last_block(block: Any, x: Tensor, read: Tensor, allowed: Allowed, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """A block of Qwen2 over (1, T, D) at places `read` (M,) alone -> (1, M, D): keys and values of all, everything else of those."""
    attention, (cos, sin) = block.self_attn, rotation
    normed = block.input_layernorm(x)
    heads = [(attention.q_proj, normed[:, read]), (attention.k_proj, normed), (attention.v_proj, normed)]
    query, key, value = (layer(y).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for layer, y in heads)
    query, key = rotated(query, cos[:, read], sin[:, read]), rotated(key, cos, sin)
    call = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    seen, _ = call(attention, query, key, value, allowed, scaling=attention.scaling, dropout=0.0)
    x = x[:, read] + attention.o_proj(seen.flatten(2))
    return x + block.mlp(block.post_attention_layernorm(x))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, heads, T, d) by rotary positions (B, T, d)."""
    return x * cos[:, None] + rotate_half(x) * sin[:, None]
