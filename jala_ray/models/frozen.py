"""Frozen modules, held in the precision in which they are multiplied: half the memory, and no pass that rounds them again.

Under autocast the results are bit-equal: it would round the same float32 values to the same halves in every pass. Norms and what is added
stay in float32. Checkpoints hold the float32 values, which are kept on the host.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor, nn

_HELD = "_held_in"
"""Attribute of a module that is held, its dtype."""


def hold(module: nn.Module, dtype: torch.dtype) -> None:
    """Round the matrices of a module that does not learn to `dtype`; `state_dict` goes on giving what they were. Load weights before."""
    for layer in module.modules():
        own = dict(layer.named_parameters(recurse=False))
        # Not the convolution that cuts patches: the library takes its dtype for that of the pictures and of their positions.
        if not isinstance(layer, nn.Linear) or hasattr(layer, _HELD) or any(p.requires_grad for p in own.values()):
            continue
        kept = {name: parameter.detach().cpu() for name, parameter in own.items()}
        for parameter in own.values():
            parameter.data = parameter.data.to(dtype)
        layer.register_state_dict_post_hook(functools.partial(_as_kept, kept))
        setattr(layer, _HELD, dtype)
    setattr(module, _HELD, dtype)


def _as_kept(kept: dict[str, Tensor], _module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    state |= {prefix + name: value for name, value in kept.items()}


def is_held(module: nn.Module) -> bool:
    """Whether any of it is held: weights that are loaded now would not be those that it computes with."""
    return any(hasattr(layer, _HELD) for layer in module.modules())


def precision(module: nn.Module, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """What a held module must run in, where no autocast is on; nothing for others."""
    held = getattr(module, _HELD, None)
    if held is None or torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, held)
