"""The frozen encoder whose features the perceivers read (method.md 5). What differs from kind to kind lies in `models/encoders/`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from jala_ray.config import EncoderConfig
from jala_ray.config.encoders import ENCODERS
from jala_ray.models.frozen import precision
from jala_ray.types import ConfigError, UserError

RANDOM_SEED = 0
"""Random encoders always get the weights of this seed, so that their key names their features."""
PAIR_FRAMES = 2
"""Frames of what a pair encoder reads."""


def encoder_key(config: EncoderConfig) -> str:
    """Identity of the features a configuration gives, for caches: kind, weights, image size, preprocessing.

    A folder as `pretrained` is known by its path, so change the path when its weights change.
    """
    identity = dataclasses.asdict(config) | {"preprocessing": ENCODERS.find(config.kind).preprocessing}
    # Sizes and seed make a random encoder's weights; a pretrained one is its name and revision.
    identity["sizes" if config.pretrained else "seed"] = None if config.pretrained else RANDOM_SEED
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return f"{config.kind}-{config.image_size}px-{digest}"


class FrameEncoder(nn.Module):
    """A frozen encoder: it never trains nor leaves evaluation mode, so frames always give the same features.

    `pairs` is True for kinds that read two frames as one clip. Features are `(P, dim)` patches, row-major over `grid` (rows, columns).
    Build it with `build`.
    """

    def __init__(self, model: nn.Module, config: EncoderConfig) -> None:
        super().__init__()
        self.config, self.kind = config, ENCODERS.find(config.kind)()
        self.pairs = self.kind.pairs
        self.model: Any = model
        facts, self.image_size = self.kind.facts(model), config.image_size
        if config.image_size % facts.patch:
            raise ConfigError("encoder.image_size", config.image_size, f"a multiple of the patch, {facts.patch} px")
        self.dim = facts.dim
        self.grid = (config.image_size // facts.patch, config.image_size // facts.patch)
        self.n_patches = self.grid[0] * self.grid[1]
        self.key = encoder_key(config)
        self.requires_grad_(False).train(False)

    @classmethod
    def build(cls, config: EncoderConfig, hf_config_dict: dict[str, Any] | None = None) -> FrameEncoder:
        """Make an encoder: from its stored architecture, pretrained weights, or random from `config.sizes`.

        `hf_config_dict` (see `hf_config_dict()`) rebuilds the architecture without the hub, for weights of a
        checkpoint. Raises `ConfigError` when weights can't be found, lack a tensor or are of another architecture.
        """
        kind = ENCODERS.find(config.kind)()
        if hf_config_dict is None and config.pretrained is not None:
            return cls(kind.load(config, config.pretrained), config)
        if hf_config_dict is None:
            kind.check(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            return cls(kind.make(config, hf_config_dict), config)

    def hf_config_dict(self) -> dict[str, Any]:
        """The architecture as JSON-able values, for `build`."""
        return self.kind.facts(self.model).architecture

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
        with precision(self.model, frames.device):
            return self.kind.features(self.model, frames)
