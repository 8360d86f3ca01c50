"""Low-rank adapters of the language model's linear layers (LoRA, arXiv 2106.09685), and their layers once merged.

A layer keeps its name and its parameters' names, `lora_a` and `lora_b` come beside them: weights of a run without adapters are weights of
one with them, and the other way round once `merged`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jala_ray.config import LoraConfig
from jala_ray.models.tensor_files import TensorFiles
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from jala_ray.models.backbones.base import Backbone

NAMES = ("lora_a", "lora_b")


class LoraLinear(nn.Linear):
    """W x + b + scale * B A x, where A (`lora_a`) and B (`lora_b`) learn alone. It begins as the layer that it stands for: B = 0."""

    def __init__(self, layer: nn.Linear, config: LoraConfig) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias, self.scale = layer.weight, layer.bias, config.scale
        self.lora_a = nn.Parameter(layer.weight.new_empty(config.rank, layer.in_features))
        self.lora_b = nn.Parameter(layer.weight.new_zeros(layer.out_features, config.rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        if torch.is_autocast_enabled(kind):  # else each product keeps a rounded copy of its own for the backward pass
            input = input.to(torch.get_autocast_dtype(kind))
        down = F.linear(input, self.lora_a) * self.scale
        return F.linear(input, self.weight, self.bias) + F.linear(down, self.lora_b)


def adapt(backbone: Backbone, config: LoraConfig) -> None:
    """Give the blocks adapters, and stop what they stand for: matrices and biases of all blocks, text embeddings and text head.

    Whatever draws random numbers next draws what it would without. Raises `ConfigError` for a layer that isn't there.
    """
    blocks = backbone.blocks
    linear = {name: module for name, module in blocks.named_modules() if isinstance(module, nn.Linear)}
    known = {last(name) for name in linear}
    if unknown := [name for name in config.layers if name not in known]:
        raise ConfigError("model.backbone.lora.layers", " ".join(unknown), f"some of {', '.join(sorted(known))}")
    for module in (*linear.values(), backbone.words):
        module.requires_grad_(False)
    backbone.head.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        for name, module in linear.items():
            if last(name) in (config.layers or known):
                blocks.set_submodule(name, LoraLinear(module, config))


def last(name: str) -> str:
    return name.rpartition(".")[2]


def adapters(names: Iterable[str]) -> set[str]:
    """Those names of tensors that are adapters'."""
    return {name for name in names if last(name) in NAMES}


class MergedFiles(TensorFiles):
    """Stored weights as layers without adapters: W + scale * B A in the place of W."""

    def __init__(self, stored: TensorFiles, config: LoraConfig) -> None:
        super().__init__(())
        hidden = adapters(stored)
        self._places = {name: place for name, place in stored._places.items() if name not in hidden}
        self.stored, self.scale = stored, config.scale if hidden else 0.0

    def tensor(self, name: str) -> Tensor:
        weight = self.stored.tensor(name)
        a, b = (f"{name.rpartition('.')[0]}.{adapter}" for adapter in NAMES)
        if last(name) != "weight" or a not in self.stored:
            return weight
        # In float64: a sum of one rounding, whatever the machine's products are made of.
        added = self.stored.tensor(b).double() @ self.stored.tensor(a).double()
        return (weight.double() + self.scale * added).to(weight.dtype)
