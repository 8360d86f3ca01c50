"""Pictures of a training sample, changed a little: cropped, turned, in other colours. All of one sample alike (method.md 10)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jala_ray.config import AugmentConfig

NUMBERS = 7
"""That chance decides: two for the crop's place, then angle, brightness, contrast, saturation, hue; each from -1 to 1."""


def augmented(images: np.ndarray, drawn: np.ndarray, config: AugmentConfig) -> np.ndarray:
    """Pictures (M, 3, H, W) uint8 -> the same shape, as `drawn` (NUMBERS,) says: all of them by the same crop, angle and colours."""
    from torchvision.transforms.v2 import functional as change

    made: Tensor = torch.from_numpy(np.ascontiguousarray(images))
    side = list(made.shape[-2:])
    top, left, angle, brightness, contrast, saturation, hue = (float(x) for x in drawn)
    if config.crop < 1:
        kept = [max(1, round(config.crop * length)) for length in side]
        at = [round((place + 1) / 2 * (whole - own)) for place, whole, own in zip((top, left), side, kept, strict=True)]
        made = change.resized_crop(made, at[0], at[1], kept[0], kept[1], side, antialias=True)
    if config.rotation:
        made = change.rotate(made, angle * config.rotation, change.InterpolationMode.BILINEAR)
    made = change.adjust_brightness(made, 1 + config.brightness * brightness)
    made = change.adjust_contrast(made, 1 + config.contrast * contrast)
    made = change.adjust_saturation(made, 1 + config.saturation * saturation)
    return change.adjust_hue(made, config.hue * hue).numpy()


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Pictures (M, 3, H, W) uint8 -> (M, 3, side, side), bicubic and antialiased, as decoding makes them."""
    given = torch.from_numpy(np.ascontiguousarray(images)).float()
    made = F.interpolate(given, (side, side), mode="bicubic", antialias=True)
    return made.round().clamp(0, 255).to(torch.uint8).numpy()
