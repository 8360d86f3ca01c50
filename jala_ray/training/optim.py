"""AdamW, the schedule, and the gradient norm (method.md 6)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from jala_ray.config import OptimConfig
from jala_ray.models.shards import own_part
from jala_ray.types import ConfigError


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Only parameters that learn by gradient enter; the EMA-moved halves of the perceivers get no weight decay (method.md 5).

    Vectors (norms, biases) are not decayed. Raises `ConfigError` for 8-bit moments without torchao.
    """
    learned = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.states == "8bit":
        return _eight_bit()(groups, lr=config.lr, betas=config.betas)
    fused = bool(learned) and learned[0].is_cuda
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def _eight_bit() -> Any:
    """torchao's AdamW; importing it also teaches `torch.load` its moments."""
    try:
        from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]  the extra `8bit`
    except ImportError as error:
        raise ConfigError("optim.states", "8bit", "torchao beside torch", "pip install 'jala-ray[8bit]'") from error
    return AdamW8bit


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """Factor of step `step` (from 0) of `steps`: linear warm-up over the share `warmup`, then cosine decay to 0."""
    ramp = max(1, round(warmup * steps))
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # where the step is compiled
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


@torch.no_grad()
def clip_gradients(module: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients to a norm of at most `max_norm`; returns the norm before.

    The norms are added in float64, so that parameters with zero gradient do not change the result's last bit. Collective where gradients
    are sharded.
    """
    found = [p.grad for p in module.parameters() if p.grad is not None]
    grads = [*map(own_part, found)]
    square = torch.stack(torch._foreach_norm(grads)).double().square().sum()
    if isinstance(found[0], DTensor):  # then all are
        dist.all_reduce(square)
    norm = square.sqrt()
    torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0).to(grads[0].dtype))
    return norm
