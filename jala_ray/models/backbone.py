"""The vision-language backbone: InternVL's vision tower, projector and language model (METHOD 3).

The backbone knows text and images. Embeddings of motion tokens, hands and latent states come from outside
(`VLA`), as does the attention mask, which is honoured exactly: nothing causal is added to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint
from transformers import InternVLConfig, InternVLForConditionalGeneration

from jala_ray.config import BackboneConfig
from jala_ray.models.pretrained import Pretrained
from jala_ray.types import ConfigError, UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FIELD = "backbone.pretrained"
HUB_NAMES = {
    "vision": "vision_tower",
    "projector": "multi_modal_projector",
    "language": "language_model.model",
    "output": "language_model.lm_head",
}
"""Parts of `Backbone` -> how their tensors begin in InternVL's files on the hub."""
MAX_POSITIONS = 32_768
"""Positions the random language model's configuration declares; rotary positions need no table."""


def normalise_pixels(pixels: Tensor) -> Tensor:
    """uint8 RGB (..., 3, H, W) -> float32 by ImageNet's mean and deviation (InternVL, DINOv3, V-JEPA 2)."""
    mean, std = (pixels.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels.float() / 255.0 - mean) / std


class KVCache:
    """Keys and values of the positions already seen, one pair (B, heads, T, d) for each language block.

    While `growing`, a forward pass appends its positions. Set it False to read a fixed prefix any number of
    times (the passes over one chunk share the prefix before it).
    """

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.growing = True

    def __len__(self) -> int:
        return self.pairs[0][0].shape[2] if self.pairs else 0

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called by block `layer_idx` (from 0) with its new keys and values; returns the whole of them."""
        if layer_idx < len(self.pairs):
            old_key, old_value = self.pairs[layer_idx]
            key = torch.cat([old_key, key.to(old_key.dtype)], dim=2)
            value = torch.cat([old_value, value.to(old_value.dtype)], dim=2)
        if self.growing:
            self.pairs[layer_idx : layer_idx + 1] = [(key, value)]
        return key, value

    def crop(self, length: int) -> None:
        """Forget every position from `length` on."""
        self.pairs = [(key[:, :, :length], value[:, :, :length]) for key, value in self.pairs]

    def select(self, rows: Tensor) -> None:
        """Keep or repeat batch rows: `rows` (B',) indices into B."""
        self.pairs = [(key[rows], value[rows]) for key, value in self.pairs]


class Backbone(nn.Module):
    """InternVL in four parts: `vision`, `projector`, `language` and, when embeddings are untied, `output`.

    Weights are float32 masters; run it under `torch.autocast` for bf16. Build it with `Backbone.build`.
    """

    def __init__(self, model: InternVLForConditionalGeneration, config: BackboneConfig) -> None:
        super().__init__()
        self.config, self.hf_config = config, model.config
        vision, text = towers(model.config)
        self.vision = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.language = model.model.language_model
        tied = model.lm_head.weight is self.language.embed_tokens.weight
        self.output = None if tied else model.lm_head

        self.hidden_size: int = text.hidden_size
        self.n_layers: int = len(self.language.layers)
        self.text_vocab_size: int = self.language.embed_tokens.num_embeddings
        self.image_size = config.image_size
        self.fold = round(1 / model.config.downsample_ratio)
        patch = vision.patch_size[0]
        if config.image_size % (patch * self.fold):
            remedy = f"InternVL folds {self.fold} x {self.fold} patches of {patch} px into one token."
            raise ConfigError("backbone.image_size", config.image_size, f"a multiple of {patch * self.fold}", remedy)
        self.grid = config.image_size // patch
        self.image_tokens: int = (self.grid // self.fold) ** 2
        if config.freeze_vision:
            self.freeze("vision")

    # --- building -------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        config: BackboneConfig,
        hf_config_dict: dict[str, Any] | None = None,
        *,
        text_vocab_size: int | None = None,
    ) -> Backbone:
        """Make a backbone: from its stored architecture, pretrained weights, or random from the sizes.

        `hf_config_dict` (see `hf_config_dict()`) rebuilds the architecture with random weights and never asks
        the hub: a checkpoint loads its own weights into it. `text_vocab_size` is what the text tokenizer
        needs: a random backbone gets exactly that many rows, a pretrained one grows to it and never shrinks.
        Random weights follow torch's global seed.

        Raises `ConfigError` when weights can't be found, lack a tensor or are of another architecture, or sizes don't fit.
        """
        if hf_config_dict is not None:
            model = InternVLForConditionalGeneration(prepared(InternVLConfig.from_dict(hf_config_dict)))
        elif (files := source(config)) is not None:
            model = load_pretrained(files)
        else:
            if text_vocab_size is None:
                raise ConfigError("text_vocab_size", None, "the text tokenizer's size for a random backbone")
            model = InternVLForConditionalGeneration(prepared(random_config(config, text_vocab_size)))
        if text_vocab_size is not None and text_vocab_size > towers(model.config)[1].vocab_size:
            model.resize_token_embeddings(text_vocab_size, mean_resizing=False)
        # The vision tower needs no mask, so flex_attention would only cost it compile time.
        vision_attention = "eager" if config.attention == "eager" else "sdpa"
        model.set_attn_implementation({"text_config": config.attention, "vision_config": vision_attention})
        return cls(model.train(), config)

    def hf_config_dict(self) -> dict[str, Any]:
        """The architecture as JSON-able values, for `build`."""
        return self.hf_config.to_dict()

    # --- who learns -----------------------------------------------------------------------------------------

    def parts(self) -> dict[str, nn.Module]:
        """`vision`, `projector`, `language` and, when untied, `output`."""
        named = {
            "vision": self.vision,
            "projector": self.projector,
            "language": self.language,
            "output": self.output,
        }
        return {name: module for name, module in named.items() if module is not None}

    def freeze(self, *names: str) -> None:
        """Stop the gradients of parts (the vision tower by the config; more for post-training, METHOD 10)."""
        for name in names:
            if name not in self.parts():
                raise ConfigError("freeze", name, f"one of {', '.join(self.parts())}")
            self.parts()[name].requires_grad_(False)
        self.train(self.training)

    def trainable(self) -> list[str]:
        """Names of the parameters that learn."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def sometimes_unused(self) -> list[nn.Parameter]:
        """Parameters that a batch may leave without a gradient: image parts, and the untied language head."""
        modules: Iterable[nn.Module] = (m for name, m in self.parts().items() if name != "language")
        return [parameter for module in modules for parameter in module.parameters()]

    def train(self, mode: bool = True) -> Backbone:
        """As usual, but a frozen vision tower stays in evaluation mode."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.vision.parameters()):
            self.vision.eval()
        return self

    # --- embeddings -----------------------------------------------------------------------------------------

    def embed_text(self, ids: Tensor) -> Tensor:
        """Text token ids (...) -> (..., D)."""
        return self.language.embed_tokens(ids)

    @torch.no_grad()
    def embedding_std(self) -> float:
        """Standard deviation of the text embeddings: the scale for embeddings that join them; 1 where they have sizes alone."""
        weight = self.language.embed_tokens.weight
        return 1.0 if weight.is_meta else float(weight.std())

    def encode_image(self, pixels: Tensor) -> Tensor:
        """uint8 RGB tiles (S, 3, image_size, image_size) -> (S, image_tokens, D), tokens row-major."""
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != (3, self.image_size, self.image_size):
            expected = f"uint8 (S, 3, {self.image_size}, {self.image_size})"
            raise UserError("pixels", (pixels.dtype, tuple(pixels.shape)), expected, "Resize when decoding.")
        if pixels.shape[0] == 0:
            weight = self.projector.linear_2.weight
            return weight.new_zeros(0, self.image_tokens, self.hidden_size)
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.vision.parameters())
        with torch.set_grad_enabled(learns):
            patches = self.vision(pixel_values=normalise_pixels(pixels)).last_hidden_state[:, 1:]
        # Pixel shuffle: fold x fold neighbouring patches become one token of fold^2 times the width.
        folded = rearrange(
            patches,
            "s (r dr c dc) d -> s (r c) (dr dc d)",
            dr=self.fold,
            dc=self.fold,
            c=self.grid // self.fold,
        )
        return self.projector(folded)

    # --- the language model ---------------------------------------------------------------------------------

    def forward(
        self,
        inputs_embeds: Tensor,
        mask: Tensor | BlockMask,
        position_ids: Tensor,
        taps: tuple[int, ...] = (),
        cache: KVCache | None = None,
    ) -> tuple[Tensor, dict[int, Tensor], KVCache | None]:
        """Run the language model.

        `inputs_embeds` (B, T, D); `mask` bool (B, 1, T, Tkv), True = may attend, or a `BlockMask` for
        flex_attention, Tkv = positions in the cache + T; `position_ids` (B, T), free to restart for packed
        samples. Every query needs a key to attend to.

        Returns `(final, hidden, cache)`: `final` (B, T, D) after the last norm; `hidden[tap]` (B, T, D) the
        output of language block `tap`, counted from 1, before the last norm (METHOD 5). Raises `ConfigError`
        for a tap that isn't there, `UserError` for a mask or cache that doesn't fit.
        """
        if outside := [tap for tap in taps if not 1 <= tap <= self.n_layers]:
            raise ConfigError("taps", outside, f"language blocks 1..{self.n_layers}, counted from 1")
        recompute = self.config.gradient_checkpointing and self.training and torch.is_grad_enabled()
        if recompute and cache is not None:
            raise UserError("cache", "given", "none under gradient checkpointing", "Call eval() to generate.")
        past = 0 if cache is None else len(cache)
        prepared_mask = self._prepare_mask(mask, inputs_embeds, past)
        rotation = self._rotation(inputs_embeds, position_ids)

        x, hidden = inputs_embeds, {}
        for number, block in enumerate(self.language.layers, start=1):
            arguments = {
                "attention_mask": prepared_mask,
                "position_embeddings": rotation,
                "position_ids": position_ids,
                "past_key_values": cache,
            }
            x = checkpoint(block, x, use_reentrant=False, **arguments) if recompute else block(x, **arguments)
            if number in taps:
                hidden[number] = x
        return self.language.norm(x), hidden, cache

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """Final hidden states (..., D) -> next-text-token logits (..., text_vocab_size)."""
        return F.linear(hidden, (self.output or self.language.embed_tokens).weight)

    def _prepare_mask(self, mask: Tensor | BlockMask, x: Tensor, past: int) -> Tensor | BlockMask:
        # A mask handed to a block is never None, so no attention kernel falls back to its own causal one.
        if (self.config.attention == "flex_attention") != isinstance(mask, BlockMask):
            expected = "a BlockMask with flex_attention and a dense bool mask with sdpa and eager"
            raise UserError("mask", type(mask).__name__, expected)
        if isinstance(mask, BlockMask):
            return mask
        batch, length, _ = x.shape
        expected_shape = (batch, 1, length, past + length)
        if mask.dtype != torch.bool or tuple(mask.shape) != expected_shape:
            raise UserError("mask", (mask.dtype, tuple(mask.shape)), f"bool {expected_shape}")
        if self.config.attention == "sdpa":
            return mask
        return torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill_(~mask, torch.finfo(x.dtype).min)

    def _rotation(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.language.rotary_emb(x, position_ids)
        if self.config.attention == "flex_attention" and torch.is_autocast_enabled(x.device.type):
            # flex_attention wants one dtype: float32 rotations would lift queries and keys above bf16 values.
            dtype = torch.get_autocast_dtype(x.device.type)
            return cos.to(dtype), sin.to(dtype)
        return cos, sin


def random_config(config: BackboneConfig, text_vocab_size: int) -> InternVLConfig:
    """InternVL's configuration at the sizes of `config.vision` and `config.language`."""
    vision, language = config.vision, config.language
    for part, sizes in (("vision", vision), ("language", language)):
        if sizes.hidden % sizes.heads:
            raise ConfigError(f"backbone.{part}.hidden", sizes.hidden, f"a multiple of heads = {sizes.heads}")
    if language.heads % language.kv_heads:
        raise ConfigError("backbone.language.heads", language.heads, f"a multiple of kv_heads = {language.kv_heads}")
    if config.image_size % vision.patch:
        raise ConfigError("backbone.image_size", config.image_size, f"a multiple of the patch, {vision.patch} px")
    return InternVLConfig(
        vision_config={
            "hidden_size": vision.hidden,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "intermediate_size": vision.mlp,
            "image_size": [config.image_size] * 2,
            "patch_size": [vision.patch] * 2,
            "attention_bias": True,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": text_vocab_size,
            "hidden_size": language.hidden,
            "num_hidden_layers": language.layers,
            "num_attention_heads": language.heads,
            "num_key_value_heads": language.kv_heads,
            "intermediate_size": language.mlp,
            "max_position_embeddings": MAX_POSITIONS,
            # The usual 0.02 is about 1 / sqrt(hidden) of a full-size model; narrow ones learn slowly with it.
            "initializer_range": language.hidden**-0.5,
            "rope_parameters": {"rope_type": "default", "rope_theta": language.rope_theta},
            "tie_word_embeddings": language.tie_embeddings,
        },
        tie_word_embeddings=language.tie_embeddings,
    )


def source(config: BackboneConfig) -> Pretrained | None:
    """Where a pretrained backbone's files lie."""
    remedy = "Give a hub name or folder in the transformers format, e.g. OpenGVLab/InternVL3-2B-hf."
    return None if config.pretrained is None else Pretrained(FIELD, config.pretrained, config.revision, remedy)


def load_pretrained(files: Pretrained) -> InternVLForConditionalGeneration:
    """Weights and configuration, in float32. Raises `ConfigError`."""
    model = files.load(InternVLForConditionalGeneration, config=prepared(files.config(InternVLConfig)))
    # Whether the head is the embedding is what the weights say: many a config.json is silent, and the library then takes it for tied.
    # Said here, before the embedding grows, which would tie them; a checkpoint's architecture keeps it.
    tied = model.lm_head.weight is model.model.language_model.embed_tokens.weight
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = tied
    return model


def towers(config: InternVLConfig) -> tuple[Any, Any]:
    """The configurations of the vision tower and of the language model."""
    return config.vision_config, config.text_config


def prepared(config: InternVLConfig) -> InternVLConfig:
    """Switch dropout off, and refuse what this backbone doesn't run."""
    vision, text = towers(config)
    if any(kind != "full_attention" for kind in text.layer_types):
        raise ConfigError("text_config.layer_types", text.layer_types, "full attention in every block")
    if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "default":
        found = (config.vision_feature_layer, config.vision_feature_select_strategy)
        raise ConfigError("vision_feature_layer, vision_feature_select_strategy", found, "(-1, 'default')")
    text.attention_dropout = 0.0
    vision.attention_dropout = vision.hidden_dropout_prob = vision.projection_dropout = 0.0
    config.dtype = torch.float32
    return config


def hub_name(name: str) -> str:
    """A tensor's name in `Backbone.state_dict()` -> its name in InternVL's files on the hub."""
    part, _, rest = name.partition(".")
    return f"{HUB_NAMES[part]}.{rest}"


def own_name(name: str) -> str:
    """The inverse of `hub_name`."""
    part, prefix = next((p, prefix) for p, prefix in HUB_NAMES.items() if name.startswith(f"{prefix}."))
    return part + name[len(prefix) :]


@dataclass(frozen=True)
class BackboneFacts:
    """What others must know of a backbone before its weights are loaded."""

    text_vocab_size: int
    image_tokens: int
    n_layers: int


def backbone_facts(config: BackboneConfig, text_vocab_size: int) -> BackboneFacts:
    """Facts from the architecture alone; `text_vocab_size` is the text tokenizer's. Raises `ConfigError`."""
    files = source(config)
    hf = random_config(config, text_vocab_size) if files is None else prepared(files.config(InternVLConfig))
    vision, text = towers(hf)
    tokens = (config.image_size // vision.patch_size[0] // round(1 / hf.downsample_ratio)) ** 2
    return BackboneFacts(max(text.vocab_size, text_vocab_size), tokens, text.num_hidden_layers)
