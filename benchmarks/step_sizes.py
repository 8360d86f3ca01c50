"""Sizes of models for the benchmarks of the training step, and the run's configuration at each.

The small ones are in proportion to InternVL3-2B with DINOv3-L: grouped heads, a tap after two thirds of the blocks, frozen towers at
18 / 11 / 6 % of the work of the mixes one_chunk / short / ten, a picture of 256 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jala_ray.config import (
    BackboneConfig,
    EncoderConfig,
    JalaConfig,
    LanguageSizes,
    ModelConfig,
    RunConfig,
    TextConfig,
    TrainConfig,
    VisionSizes,
)
from jala_ray.config.backbones import BACKBONES
from jala_ray.parsing import override


@dataclass(frozen=True)
class Size:
    vision: VisionSizes
    language: LanguageSizes
    encoder: VisionSizes
    tap: int
    """The aligned block, counted from 1."""
    perceiver: tuple[int, int]
    """Width and heads."""
    image_size: int = 448
    frame_size: int = 224
    words: int | None = None
    """Rows of the text embedding, where they are more than the small tokenizer's."""


def _published(name: str) -> Size:
    """A released backbone's architecture at random weights, with an encoder of DINOv3-L's size."""
    found = BACKBONES.find("internvl").published[name]
    encoder = VisionSizes(hidden=1024, layers=24, heads=16, mlp=4096, patch=16)
    tap = round(found.language.layers * 19 / 28)
    return Size(found.vision, found.language, encoder, tap, (768, 12), words=found.words)


SIZES = {
    "63m": Size(
        VisionSizes(hidden=256, layers=10, heads=4, mlp=1024),
        LanguageSizes(hidden=512, layers=12, heads=8, kv_heads=2, mlp=2432, tie_embeddings=False),
        VisionSizes(hidden=256, layers=12, heads=4, mlp=1024, patch=16),
        tap=8,
        perceiver=(160, 4),
    ),
    "16m": Size(
        VisionSizes(hidden=128, layers=6, heads=4, mlp=512),
        LanguageSizes(hidden=256, layers=9, heads=4, kv_heads=1, mlp=1408, tie_embeddings=False),
        VisionSizes(hidden=128, layers=8, heads=4, mlp=512, patch=16),
        tap=6,
        perceiver=(80, 4),
    ),
    "1b": _published("OpenGVLab/InternVL3-1B-hf"),
    "2b": _published("OpenGVLab/InternVL3-2B-hf"),
    "tiny": Size(
        VisionSizes(hidden=32, layers=1, heads=2, mlp=64),
        LanguageSizes(hidden=64, layers=8, heads=4, kv_heads=2, mlp=96, tie_embeddings=False),
        VisionSizes(hidden=32, layers=1, heads=2, mlp=64, patch=16),
        tap=5,
        perceiver=(32, 2),
        image_size=56,
        frame_size=32,
    ),
}
"""By name; `tiny` is for trying the benchmarks themselves."""


def run_config(size: Size, batch: int, micro_batch: int, values: Mapping[str, Any] | None = None) -> RunConfig:
    """The product's own settings but for the model's sizes and the step's; `values` are dotted settings beside them."""
    backbone = BackboneConfig(image_size=size.image_size, vision=size.vision, language=size.language)
    encoder = EncoderConfig(image_size=size.frame_size, sizes=size.encoder)
    width, heads = size.perceiver
    perceivers = {"align.layer": size.tap, "perceiver.width": width, "perceiver.heads": heads}
    made = RunConfig(
        name="benchmark",
        motion_tokenizer="none",
        model=ModelConfig(backbone, encoder, TextConfig()),
        objective=override(JalaConfig(), perceivers),
        train=TrainConfig(steps=1000, batch=batch, micro_batch=micro_batch, precision="fp32"),
    )
    return override(made, {"data.manifest": "none"} | dict(values or {}))
