"""Blocks as kernels of their own."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule


def compile_block(block: nn.Module, backend: Any) -> None:
    """As kernels of its own. Of a sharded block what it computes alone: weights are gathered and gradients reduced around that."""
    if isinstance(block, FSDPModule):
        own = inspect.unwrap(type(block).forward)  # transformers wraps all kinds of blocks in one function
        block.forward = functools.partial(torch.compile(own, dynamic=True, backend=backend), block)
    else:
        block.compile(dynamic=True, backend=backend)
