"""InternVL's modules, as transformers has them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import InternVLConfig, InternVLForConditionalGeneration

from jala_ray.config import BackboneConfig
from jala_ray.models.attention import Allowed
from jala_ray.models.backbones._transformers import TransformersBackbone, qwen2_sizes
from jala_ray.models.backbones.base import KVCache
from jala_ray.models.pixels import normalise_pixels
from jala_ray.types import ConfigError


class InternVLBackbone(TransformersBackbone):
    """Vision transformer, pixel shuffle and projector, Qwen2."""

    config_class = InternVLConfig
    model_class = InternVLForConditionalGeneration
    hub_names: ClassVar = {
        "vision": "vision_tower",
        "projector": "multi_modal_projector",
        "language": "language_model.model",
        "output": "language_model.lm_head",
    }

    @classmethod
    def random_config(cls, config: BackboneConfig, text_vocab_size: int) -> InternVLConfig:
        vision, language = config.vision, config.language
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
                **qwen2_sizes(language, text_vocab_size),
                "rope_parameters": {"rope_type": "default", "rope_theta": language.rope_theta},
                "tie_word_embeddings": language.tie_embeddings,
            },
            tie_word_embeddings=language.tie_embeddings,
        )

    @classmethod
    def prepared(cls, hf: Any) -> Any:
        vision, text = hf.vision_config, hf.text_config
        if any(kind != "full_attention" for kind in text.layer_types):
            raise ConfigError("text_config.layer_types", text.layer_types, "full attention in every block")
        if hf.vision_feature_layer != -1 or hf.vision_feature_select_strategy != "default":
            found = (hf.vision_feature_layer, hf.vision_feature_select_strategy)
            raise ConfigError("vision_feature_layer, vision_feature_select_strategy", found, "(-1, 'default')")
        text.attention_dropout = 0.0
        vision.attention_dropout = vision.hidden_dropout_prob = vision.projection_dropout = 0.0
        hf.dtype = torch.float32
        return hf

    @classmethod
    def patch(cls, hf: Any) -> int:
        return hf.vision_config.patch_size[0]

    @classmethod
    def fold(cls, hf: Any) -> int:
        return round(1 / hf.downsample_ratio)

    def split(self, model: Any) -> tuple[nn.Module, nn.Module, Any]:
        return model.model.vision_tower, model.model.multi_modal_projector, model.model.language_model

    def see(self, pixels: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.vision_learns()):
            patches = self.vision(pixel_values=normalise_pixels(pixels)).last_hidden_state[:, 1:]
        # Pixel shuffle: fold x fold neighbouring patches become one token of fold^2 times the width.
        fold = self.fold(self.hf_config)
        side = round(self.image_tokens**0.5)
        folded = rearrange(patches, "s (r dr c dc) d -> s (r c) (dr dc d)", dr=fold, dc=fold, c=side)
        return self.projector(folded)

    def block_arguments(self, x: Tensor, mask: Allowed, position_ids: Tensor, cache: KVCache | None) -> dict[str, Any]:
        return super().block_arguments(x, mask, position_ids, cache) | {"position_ids": position_ids}
