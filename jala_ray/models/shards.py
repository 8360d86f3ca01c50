"""Tensors of which every rank holds a part: torch's `DTensor`, as FSDP2 makes parameters, gradients and moments."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, over the same storage: all of one that is not sharded."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def sharded_as(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on every rank, as `like` is: on its device, in its dtype and sharded as it is. Nothing is sent."""
    value = value.to(like.device, like.dtype)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
