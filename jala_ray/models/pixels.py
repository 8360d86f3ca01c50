"""From bytes of a picture to what a network reads."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Channels = tuple[float, float, float]


def normalise_pixels(pixels: Tensor, mean: Channels = IMAGENET_MEAN, std: Channels = IMAGENET_STD) -> Tensor:
    """uint8 RGB (..., 3, H, W) -> float32 by a mean and deviation, ImageNet's where none are given (InternVL, DINOv3, V-JEPA 2)."""
    centre, scale = (pixels.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (mean, std))
    return (pixels.float() / 255.0 - centre) / scale
