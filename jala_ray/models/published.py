"""Sizes of published models, for estimates without their files. What is trained is always what the files say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jala_ray.config import LanguageSizes, ModelConfig, VisionSizes
from jala_ray.types import ConfigError

VIT_L = VisionSizes(hidden=1024, layers=24, heads=16, mlp=4096, patch=16)

BACKBONES: dict[str, tuple[VisionSizes, LanguageSizes, int]] = {
    "OpenGVLab/InternVL3-1B-hf": (
        replace(VIT_L, patch=14),
        LanguageSizes(hidden=896, layers=24, heads=14, kv_heads=2, mlp=4864, tie_embeddings=False),
        151_674,
    ),
    "OpenGVLab/InternVL3-2B-hf": (
        replace(VIT_L, patch=14),
        LanguageSizes(hidden=1536, layers=28, heads=12, kv_heads=2, mlp=8960, tie_embeddings=False),
        151_674,
    ),
}
"""Hub name -> vision tower, language model, text vocabulary."""

ENCODERS: dict[str, VisionSizes] = {
    "facebook/dinov3-vits16-pretrain-lvd1689m": VisionSizes(hidden=384, layers=12, heads=6, mlp=1536, patch=16),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": VisionSizes(hidden=768, layers=12, heads=12, mlp=3072, patch=16),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": VIT_L,
    "facebook/vjepa2-vitl-fpc64-256": VIT_L,
}
"""Hub name -> sizes of the frozen encoder."""


def unweighted(model: ModelConfig) -> ModelConfig:
    """The same sizes with random weights, so that it can be built without the hub.

    Sizes of a folder are those of its config.json, those of a hub name stand here. Raises `ConfigError` for one that is not known.
    """
    backbone, encoder, text = model.backbone, model.encoder, model.text
    if backbone.pretrained is not None:
        vision, language, words = _backbone(backbone.pretrained)
        backbone = replace(backbone, pretrained=None, vision=vision, language=language)
        text = replace(text, pretrained=None, vocab_size=words)
    if encoder.pretrained is not None:
        encoder = replace(encoder, pretrained=None, sizes=_encoder(encoder.pretrained))
    return replace(model, backbone=backbone, encoder=encoder, text=text)


def _backbone(name: str) -> tuple[VisionSizes, LanguageSizes, int]:
    raw = _of_folder(name)
    if raw is None:
        return _known("model.backbone.pretrained", name, BACKBONES)
    vision, text = raw["vision_config"], raw["text_config"]
    patch = vision["patch_size"]
    sizes = _vision(vision, patch[0] if isinstance(patch, list) else patch)
    language = LanguageSizes(
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        mlp=text["intermediate_size"],
        tie_embeddings=bool(text.get("tie_word_embeddings", raw.get("tie_word_embeddings", False))),
    )
    return sizes, language, text["vocab_size"]


def _encoder(name: str) -> VisionSizes:
    raw = _of_folder(name)
    return _known("model.encoder.pretrained", name, ENCODERS) if raw is None else _vision(raw, raw["patch_size"])


def _vision(raw: Mapping[str, Any], patch: int) -> VisionSizes:
    hidden = raw["hidden_size"]
    mlp = raw.get("intermediate_size") or round(hidden * raw.get("mlp_ratio", 4.0))
    return VisionSizes(hidden, raw["num_hidden_layers"], raw["num_attention_heads"], mlp, patch)


def _of_folder(name: str) -> dict[str, Any] | None:
    place = Path(name).expanduser() / "config.json"
    return json.loads(place.read_text()) if place.is_file() else None


def _known(field: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        remedy = "Its sizes are not known offline: give a local folder with its config.json."
        raise ConfigError(field, name, f"for an estimate, a folder or one of {', '.join(table)}", remedy)
    return table[name]
