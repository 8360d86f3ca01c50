"""torch's DDP as this project uses it, for the launcher, the tokenizer's loop and the tests."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def distributed(module: nn.Module, device: torch.device) -> nn.Module:
    """Reduce gradients over ranks; buffers are constants (or keep themselves in step) and are not broadcast."""
    known = inspect.signature(DistributedDataParallel).parameters
    sync = (
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    )  # renamed after torch 2.11
    ids = [device] if device.type == "cuda" else None
    options: dict[str, Any] = {sync: False, "gradient_as_bucket_view": True}  # no second copy of the gradients
    return DistributedDataParallel(module, device_ids=ids, **options)
