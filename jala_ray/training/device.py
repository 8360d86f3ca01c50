"""Tensors on their way between host, device and ranks."""

from __future__ import annotations

import contextlib
import resource
import sys
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from jala_ray.batch import PerceiverInputs
from jala_ray.types import ConfigError

Inputs = TypeVar("Inputs", bound=PerceiverInputs)
T = TypeVar("T")


class HostCopy:
    """The value of a device tensor for the host, asked for early and read late, so that nothing waits for the device in between."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.arrived = value, None
        if value.device.type == "cuda":
            self.value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def item(self) -> float:
        if self.arrived is not None:
            self.arrived.synchronize()
        return float(self.value)


def to_device(batch: Inputs, device: torch.device) -> Inputs:
    return batch if device.type == "cpu" else batch.pin().to(device)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def compiles(setting: Literal["auto", "on", "off"], device: torch.device) -> bool:
    """Whether blocks are compiled on a device; auto: on a GPU. Raises `ConfigError`."""
    if setting not in ("auto", "on", "off"):
        raise ConfigError("compile", setting, "auto, on or off")
    return setting == "on" or (setting == "auto" and device.type != "cpu")


def reduce_sum(value: Tensor, world: int) -> Tensor:
    """Added over all ranks, in place."""
    if world > 1:
        dist.all_reduce(value)
    return value


def gather(value: T, world: int) -> list[T]:
    """Every rank's value, in the ranks' order, on every rank."""
    if world == 1:
        return [value]
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, value)
    return gathered


def peak_memory_gb(device: torch.device) -> float:
    """The most that tensors took of a GPU since this was last asked; on a CPU, the most that the process ever had, Python included."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
