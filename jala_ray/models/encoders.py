"""Frozen encoders whose features the perceivers read: DINOv3 per frame, V-JEPA 2 per pair (METHOD 5)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedConfig,
    PreTrainedModel,
    VJEPA2Config,
    VJEPA2Model,
)

from jala_ray.config import EncoderConfig
from jala_ray.models.backbone import normalise_pixels
from jala_ray.models.pretrained import Pretrained
from jala_ray.types import ConfigError, UserError

PREPROCESSING_VERSION = 1
"""Part of every feature key: raise it when the way pixels become features changes."""
RANDOM_SEED = 0
"""Random encoders always get the weights of this seed, so that their key names their features."""
PAIR_FRAMES = 2
"""Frames a clip of a pair encoder; V-JEPA 2's tubelet."""

CLASSES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "dinov3": (DINOv3ViTConfig, DINOv3ViTModel),
    "vjepa2": (VJEPA2Config, VJEPA2Model),
}
UNUSED: dict[str, tuple[str, ...]] = {"dinov3": (), "vjepa2": ("predictor",)}
"""Parts that features don't pass through: V-JEPA 2's predictor is a pretraining head."""


def encoder_key(config: EncoderConfig) -> str:
    """Identity of the features a configuration gives, for caches: kind, weights, image size, preprocessing.

    A folder as `pretrained` is known by its path, so change the path when its weights change.
    """
    identity = dataclasses.asdict(config) | {"preprocessing": PREPROCESSING_VERSION}
    # Sizes and seed make a random encoder's weights; a pretrained one is its name and revision.
    identity["sizes" if config.pretrained else "seed"] = None if config.pretrained else RANDOM_SEED
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return f"{config.kind}-{config.image_size}px-{digest}"


class FrameEncoder(nn.Module):
    """A frozen encoder: it never trains nor leaves evaluation mode, so frames always give the same features.

    `pairs` is True for V-JEPA 2, which reads two frames as one clip. Features are `(P, dim)` patches,
    row-major over `grid` (rows, columns), without class and register tokens. Build it with `build`.
    """

    def __init__(self, model: PreTrainedModel, config: EncoderConfig) -> None:
        super().__init__()
        self.config, self.hf_config = config, model.config
        self.pairs = config.kind == "vjepa2"
        self.model: Any = model.encoder if self.pairs else model
        patch, self.image_size = int(model.config.patch_size), config.image_size
        if config.image_size % patch:
            raise ConfigError("encoder.image_size", config.image_size, f"a multiple of the patch, {patch} px")
        self.dim: int = model.config.hidden_size
        self.grid = (config.image_size // patch, config.image_size // patch)
        self.n_patches = self.grid[0] * self.grid[1]
        self.key = encoder_key(config)
        self.requires_grad_(False).train(False)

    @classmethod
    def build(cls, config: EncoderConfig, hf_config_dict: dict[str, Any] | None = None) -> FrameEncoder:
        """Make an encoder: from its stored architecture, pretrained weights, or random from `config.sizes`.

        `hf_config_dict` (see `hf_config_dict()`) rebuilds the architecture without the hub, for weights of a
        checkpoint. Raises `ConfigError` when weights can't be found, lack a tensor or are of another architecture.
        """
        config_class, model_class = CLASSES[config.kind]
        if hf_config_dict is None and config.pretrained is not None:
            return cls(load_pretrained(config, config.pretrained), config)
        hf_config = random_config(config) if hf_config_dict is None else config_class.from_dict(hf_config_dict)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            return cls(model_class(hf_config), config)

    def hf_config_dict(self) -> dict[str, Any]:
        """The architecture as JSON-able values, for `build`."""
        return self.hf_config.to_dict()

    def train(self, mode: bool = True) -> FrameEncoder:
        """Frozen: stays in evaluation mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """uint8 RGB frames (F, 3, H, W), for a pair encoder pairs (C, 2, 3, H, W) -> (F or C, P, dim)."""
        shape = ((PAIR_FRAMES,) if self.pairs else ()) + (3, self.image_size, self.image_size)
        if frames.dtype != torch.uint8 or tuple(frames.shape[1:]) != shape:
            expected = f"uint8 ({'C' if self.pairs else 'F'}, {', '.join(map(str, shape))})"
            raise UserError("frames", (frames.dtype, tuple(frames.shape)), expected, "Resize when decoding.")
        if frames.shape[0] == 0:
            return torch.zeros(0, self.n_patches, self.dim, device=frames.device)
        return self.model(normalise_pixels(frames)).last_hidden_state[:, -self.n_patches :]


def load_pretrained(config: EncoderConfig, name: str) -> PreTrainedModel:
    """Weights and configuration from the hub or a folder, in float32. Raises `ConfigError`."""
    remedy = "Give a hub name or folder in the transformers format; DINOv3's licence is accepted on the hub."
    files = Pretrained("encoder.pretrained", name, config.revision, remedy)
    config_class, model_class = CLASSES[config.kind]
    files.config_dict(config_class)
    # V-JEPA 2 takes its rotary positions from the size in the configuration, not from the pixels.
    size: dict[str, Any] = {"crop_size": config.image_size} if config.kind == "vjepa2" else {}
    return files.load(model_class, unused=UNUSED[config.kind], **size)


def random_config(config: EncoderConfig) -> PreTrainedConfig:
    """The architecture of a random encoder at `config.sizes`."""
    sizes = config.sizes
    if sizes.hidden % sizes.heads or (sizes.hidden // sizes.heads) % 4:
        expected = f"a multiple of 4 x heads = {4 * sizes.heads} (rotary positions)"
        raise ConfigError("encoder.sizes.hidden", sizes.hidden, expected)
    shared: dict[str, Any] = {
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "patch_size": sizes.patch,
    }
    if config.kind == "dinov3":
        return DINOv3ViTConfig(
            **shared, image_size=config.image_size, intermediate_size=sizes.mlp, num_register_tokens=4
        )
    return VJEPA2Config(
        **shared,
        crop_size=config.image_size,
        frames_per_clip=PAIR_FRAMES,
        tubelet_size=PAIR_FRAMES,
        mlp_ratio=sizes.mlp / sizes.hidden,
        # The predictor is built and thrown away.
        pred_num_hidden_layers=1,
        pred_hidden_size=24,
        pred_num_attention_heads=1,
    )
