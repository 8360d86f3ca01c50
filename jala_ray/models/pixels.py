"""From bytes of a picture to what a network reads."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FLAT = 0.01
"""Added to a patch's variance before it is normalised: what moves a plain table by a few grey levels is the video's compression."""
Channels = tuple[float, float, float]


def normalise_pixels(pixels: Tensor, mean: Channels = IMAGENET_MEAN, std: Channels = IMAGENET_STD) -> Tensor:
    """uint8 RGB (..., 3, H, W) -> float32 by a mean and deviation, ImageNet's where none are given (InternVL, DINOv3, V-JEPA 2)."""
    centre, scale = (pixels.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (mean, std))
    return (pixels.float() / 255.0 - centre) / scale


def patches_of(pixels: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """(B, 3, H, W), averaged to `side` x `side` pixels a patch of the grid (rows, columns) -> (B, P, 3 * side^2), row-major."""
    shown = F.adaptive_avg_pool2d(pixels, (grid[0] * side, grid[1] * side))
    return rearrange(shown, "b c (r i) (k j) -> b (r k) (c i j)", i=side, j=side)


def standardised(patches: Tensor) -> Tensor:
    """Each patch's pixels (..., N) with mean 0 and variance 1, less where it is flat."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + FLAT).sqrt()
