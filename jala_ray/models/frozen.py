"""Frozen matrices, held in the precision in which they are multiplied: half the memory, and no pass that rounds them again.

Under autocast the results are bit-equal: it would round the same float32 values to the same halves in every pass. Norms and what is added
stay in float32. Checkpoints hold the float32 values, which are kept on the host.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_HELD = "_held_in"
"""Attribute of a module that is held, its dtype."""


def hold(module: nn.Module, dtype: torch.dtype) -> None:
    """Round what `holdable` gives of a module to `dtype`; `state_dict` goes on giving what it was. Load weights before."""
    for layer, own in holdable(module):
        if hasattr(layer, _HELD):
            continue
        kept = {name: parameter.detach().cpu() for name, parameter in own.items()}
        for parameter in own.values():
            parameter.data = parameter.data.to(dtype)
        layer.register_state_dict_post_hook(functools.partial(_as_kept, kept))
        setattr(layer, _HELD, dtype)
    setattr(module, _HELD, dtype)


def holdable(module: nn.Module) -> Iterator[tuple[nn.Module, dict[str, nn.Parameter]]]:
    """Layers of matrices in a module, each with those of its own parameters that do not learn, by name."""
    for layer in module.modules():
        own = {name: p for name, p in layer.named_parameters(recurse=False) if not p.requires_grad}
        # Not the convolution that cuts patches: the library takes its dtype for that of the pictures and of their positions.
        if own and isinstance(layer, nn.Linear):
            yield layer, own


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
