"""Sizes of published models, for estimates without their files. What is trained is always what the files say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jala_ray.config import ModelConfig, VisionSizes
from jala_ray.config.backbones import BACKBONES, BackboneSizes
from jala_ray.types import ConfigError

VIT_L = VisionSizes(hidden=1024, layers=24, heads=16, mlp=4096, patch=16)

ENCODERS: dict[str, VisionSizes] = {
    "facebook/dinov3-vits16-pretrain-lvd1689m": VisionSizes(hidden=384, layers=12, heads=6, mlp=1536, patch=16),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": VisionSizes(hidden=768, layers=12, heads=12, mlp=3072, patch=16),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": VIT_L,
    "facebook/vjepa2-vitl-fpc64-256": VIT_L,
}
"""Hub name -> sizes of the frozen encoder."""


def unweighted(model: ModelConfig) -> ModelConfig:
    """The same sizes with random weights, so that it can be built without the hub.

    Sizes of a folder are those of its config.json, those of a hub name stand here or with the kind of backbone. Raises `ConfigError` for
    one that is not known.
    """
    backbone, encoder, text = model.backbone, model.encoder, model.text
    if backbone.pretrained is not None:
        found = _backbone(backbone.kind, backbone.pretrained)
        backbone = replace(backbone, pretrained=None, vision=found.vision, language=found.language)
        text = replace(text, pretrained=None, vocab_size=found.words)
    if encoder.pretrained is not None:
        encoder = replace(encoder, pretrained=None, sizes=_encoder(encoder.pretrained))
    return replace(model, backbone=backbone, encoder=encoder, text=text)


def _backbone(kind: str, name: str) -> BackboneSizes:
    raw, of = _of_folder(name), BACKBONES.find(kind, "model.backbone.kind")()
    return _known("model.backbone.pretrained", name, of.published) if raw is None else of.sizes(raw)


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
