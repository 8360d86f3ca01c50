"""An optimizer's state by the names of the parameters, as checkpoints hold it: `NAME.exp_avg`, `NAME.exp_avg_sq`, `NAME.step`.

Numbers of parameters, by which torch's `state_dict` goes, change with the order in which a module makes them. Rates and decays are the
configuration's. A moment of 8 bits is several tensors (codes, scales), each under a name of its own: `NAME.exp_avg.codes`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from jala_ray.models.shards import sharded_as
from jala_ray.models.tensor_files import TensorFiles, has_tensors
from jala_ray.types import CheckpointError

KIND = "optimizer"
"""What the names of its files begin with."""
NUMBERED = "optimizer.pt"
"""Of older checkpoints: torch's own `state_dict`."""


def moments(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """All tensors of the optimizer's state; none before its first step."""
    return {
        f"{name}.{key}{inner}": part
        for name, parameter in module.named_parameters()
        for key, value in sorted(
            optimizer.state.get(parameter, {}).items()
        )  # a loaded state has its keys in another order
        for inner, part in parts(value)
    }


def parts(value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that one is made of: itself, or those of a subclass."""
    if type(value) in (Tensor, nn.Parameter, DTensor):
        yield "", value.detach()
        return
    for inner in value.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
        yield f".{inner}", getattr(value, inner)


def load_moments(optimizer: torch.optim.Optimizer, module: nn.Module, folder: Path) -> None:
    """The reverse, from a checkpoint's files, tensor by tensor. Raises `CheckpointError` where they are of other parameters, or absent."""
    if (folder / NUMBERED).exists():
        optimizer.load_state_dict(torch.load(folder / NUMBERED, weights_only=True))
        for parameter, state in optimizer.state.items():
            whole = {key: value for key, value in state.items() if key != "step"}
            if isinstance(parameter, DTensor):
                state |= {key: sharded_as(value, parameter) for key, value in whole.items()}
        return
    if not has_tensors(folder, KIND):
        raise CheckpointError(KIND, str(folder), "an optimizer state", "Start a new run with --init instead.")
    stored, keys = TensorFiles.of_folder(folder, stem=KIND), defaultdict[str, list[str]](list)
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    known = {name: parameter for name, parameter in module.named_parameters() if parameter in groups}
    for full in stored:
        name, key = _split(full, known, folder)
        keys[name].append(key)
    for name, found in keys.items():
        parameter = known[name]
        optimizer.state[parameter] = _state(optimizer, groups[parameter], parameter, name, found, stored)


def _split(full: str, known: dict[str, nn.Parameter], folder: Path) -> tuple[str, str]:
    """(parameter, rest) of a stored name."""
    name = full
    while name not in known:
        name, dot, _ = name.rpartition(".")
        if not dot:
            remedy = "Use the preset the checkpoint was made with."
            raise CheckpointError(KIND, str(folder), f"moments of what this configuration learns, not {full}", remedy)
    return name, full[len(name) + 1 :]


def _state(
    optimizer: Any, group: dict[str, Any], parameter: Tensor, name: str, keys: list[str], stored: TensorFiles
) -> dict[str, Tensor]:
    """A parameter's state. torch reads `step` on the host, but for what runs on the device as a whole."""
    state = dict[str, Tensor]()
    on_device = bool(group.get("fused") or group.get("capturable"))
    for key in keys:
        first, dot, inner = key.partition(".")
        value = stored.tensor(f"{name}.{key}")
        if dot:  # torchao's: its own empty buffer says what the parts are put together to
            if first not in state:
                state[first] = optimizer._new_buffer(parameter, first == "exp_avg")
            getattr(state[first], inner).copy_(value)
        elif key == "step":
            state[key] = value.to(parameter.device) if on_device else value
        else:
            state[key] = sharded_as(value, parameter)
    return state
