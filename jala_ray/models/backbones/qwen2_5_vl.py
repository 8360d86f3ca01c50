"""Qwen2.5-VL: a vision transformer of windows, a patch merger, and Qwen2 whose rotary positions have three axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from jala_ray.config import LanguageSizes, VisionSizes
from jala_ray.config.backbones import BACKBONES, BackboneKind, BackboneSizes, ChatTemplate, language_sizes
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from jala_ray.config import BackboneConfig

TOWER = VisionSizes(hidden=1280, layers=32, heads=16, mlp=3420, patch=14)
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
"""What its template puts before a conversation that brings no system turn."""
AXES = 3
"""Of a position: time, row, column."""


@BACKBONES.register("qwen2_5_vl", place=2)
class Qwen2_5VL(BackboneKind):
    """Qwen2.5-VL: vision transformer of windows, 2 x 2 patches per token, Qwen2 with positions in time, row and column"""

    title = "Qwen2.5-VL"
    example = "Qwen/Qwen2.5-VL-3B-Instruct"
    template = ChatTemplate(
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
        pad="<|endoftext|>",
        end="<|im_end|>",
        image_start="<|vision_start|>",
        image="<|image_pad|>",
        image_end="<|vision_end|>",
        user_open=f"{SYSTEM}<|im_start|>user\n",
        user_close_assistant_open="<|im_end|>\n<|im_start|>assistant\n",
        assistant_close="<|im_end|>\n",
    )
    published: ClassVar = {
        "Qwen/Qwen2.5-VL-3B-Instruct": BackboneSizes(
            TOWER,
            LanguageSizes(hidden=2048, layers=36, heads=16, kv_heads=2, mlp=11008, tie_embeddings=True),
            151_936,
        ),
        "Qwen/Qwen2.5-VL-7B-Instruct": BackboneSizes(
            TOWER,
            LanguageSizes(hidden=3584, layers=28, heads=28, kv_heads=4, mlp=18944, tie_embeddings=False),
            152_064,
        ),
    }
    licences: ClassVar = {
        "Qwen/Qwen2.5-VL-3B": "Qwen Research License (no commercial use)",
        "Qwen/Qwen2.5-VL-7B": "Apache-2.0",
    }

    def module(self) -> Any:
        from jala_ray.models.backbones._qwen2_5_vl import Qwen2_5VLBackbone

        return Qwen2_5VLBackbone

    def check(self, config: BackboneConfig) -> None:
        super().check(config)
        if config.pretrained is None:
            for part, sizes, least in (("vision", config.vision, 4), ("language", config.language, 2 * AXES)):
                width = sizes.hidden // sizes.heads
                if width < least or width % (4 if part == "vision" else 2):
                    step = 4 if part == "vision" else 2
                    expected = f"heads of a multiple of {step}, at least {least} (rotary positions)"
                    raise ConfigError(f"backbone.{part}.hidden", f"{sizes.hidden} for {sizes.heads} heads", expected)

    def sizes(self, raw: Mapping[str, Any]) -> BackboneSizes:
        vision, text = (
            raw["vision_config"],
            raw.get("text_config") or raw,
        )  # older files describe Qwen2 beside the tower
        tower = VisionSizes(
            hidden=vision["hidden_size"],
            layers=vision["depth"],
            heads=vision["num_heads"],
            mlp=vision["intermediate_size"],
            patch=vision.get("patch_size", TOWER.patch),
        )
        tied = bool(raw.get("tie_word_embeddings") or text.get("tie_word_embeddings", False))
        return BackboneSizes(tower, language_sizes(text, tied), text["vocab_size"])
