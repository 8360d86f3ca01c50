"""AdamW, the schedule, and the gradient norm (method.md 6)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jala_ray.config import OptimConfig


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Only parameters that learn by gradient enter; the EMA-moved halves of the perceivers get no weight decay (method.md 5).

    Vectors (norms, biases) are not decayed.
    """
    learned = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = bool(learned) and learned[0].is_cuda
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """Factor of step `step` (from 0) of `steps`: linear warm-up over the share `warmup`, then cosine decay to 0."""
    ramp = max(1, round(warmup * steps))
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def clip_gradients(module: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients to a norm of at most `max_norm`; returns the norm before.

    The norms are added in float64, so that parameters with zero gradient do not change the result's last bit.
    """
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    norm = torch.stack(torch._foreach_norm(grads)).double().square().sum().sqrt()
    torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0).to(grads[0].dtype))
    return norm
