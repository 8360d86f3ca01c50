"""InternVL 3: a vision transformer, pixel shuffle and a two-layer projector before Qwen2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from jala_ray.config import LanguageSizes, VisionSizes
from jala_ray.config.backbones import BACKBONES, BackboneKind, BackboneSizes, ChatTemplate, language_sizes

VIT_L = VisionSizes(hidden=1024, layers=24, heads=16, mlp=4096, patch=14)


@BACKBONES.register("internvl", place=1)
class InternVL(BackboneKind):
    """InternVL 3: vision transformer, 2 x 2 patches per token, Qwen2 with one-dimensional positions"""

    title = "InternVL"
    example = "OpenGVLab/InternVL3-2B-hf"
    template = ChatTemplate(
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"),
        pad="<|endoftext|>",
        end="<|im_end|>",
        image_start="<img>",
        image="<IMG_CONTEXT>",
        image_end="</img>",
        user_open="<|im_start|>user\n",
        user_close_assistant_open="<|im_end|>\n<|im_start|>assistant\n",
        assistant_close="<|im_end|>\n",
    )
    published: ClassVar = {
        "OpenGVLab/InternVL3-1B-hf": BackboneSizes(
            VIT_L,
            LanguageSizes(hidden=896, layers=24, heads=14, kv_heads=2, mlp=4864, tie_embeddings=False),
            151_674,
        ),
        "OpenGVLab/InternVL3-2B-hf": BackboneSizes(
            VIT_L,
            LanguageSizes(hidden=1536, layers=28, heads=12, kv_heads=2, mlp=8960, tie_embeddings=False),
            151_674,
        ),
    }
    licences: ClassVar = {
        "OpenGVLab/InternVL3": "MIT (InternVL), with Qwen2.5 as its language model (Apache-2.0 at 2B)"
    }

    def module(self) -> Any:
        from jala_ray.models.backbones._internvl import InternVLBackbone

        return InternVLBackbone

    def sizes(self, raw: Mapping[str, Any]) -> BackboneSizes:
        vision, text = raw["vision_config"], raw["text_config"]
        patch = vision["patch_size"]
        tower = VisionSizes(
            hidden=vision["hidden_size"],
            layers=vision["num_hidden_layers"],
            heads=vision["num_attention_heads"],
            mlp=vision["intermediate_size"],
            patch=patch[0] if isinstance(patch, list) else patch,
        )
        tied = bool(text.get("tie_word_embeddings", raw.get("tie_word_embeddings", False)))
        return BackboneSizes(tower, language_sizes(text, tied), text["vocab_size"])
