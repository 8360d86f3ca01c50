"""Micro-batches of this tree and of older ones, in one form: columns by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def columns(batch: Any) -> dict[str, Tensor]:
    """Of a `Batch`, or of the dictionary that it once was."""
    return dict(batch) if isinstance(batch, dict) else batch.tensors()
