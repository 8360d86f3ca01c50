"""One batch over several ranks: the numbers are those of one rank that holds all of it.

The codebooks learn from whole batches (k-means, moving averages, vectors that replace dead codes), which sums of the ranks' parts would
not give: what is drawn would depend on who draws. Latent vectors are small, so every rank gets them all and does the same. Sums on GPUs
are not the same every time, so the ranks then take over what the first one learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(x: Tensor) -> tuple[Tensor, slice]:
    """Rows x (C, ...) of this rank -> the rows of all ranks in their order, and which of them are its own. C may differ between ranks.

    Only its own rows carry gradients.
    """
    if count() == 1:
        return x, slice(len(x))
    rows = torch.tensor([len(x)], device=x.device)
    each = [torch.empty_like(rows) for _ in range(count())]
    dist.all_gather(each, rows)
    sizes = torch.cat(each).tolist()
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: len(x)] = x.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    rank = dist.get_rank()
    whole = torch.cat(
        [x if i == rank else part[:size] for i, (part, size) in enumerate(zip(parts, sizes, strict=True))]
    )
    first = sum(sizes[:rank])
    return whole, slice(first, first + len(x))


def total(x: Tensor) -> Tensor:
    """The sum of x over the ranks. Its gradient is the sum's, once DDP has averaged the ranks' gradients."""
    if count() == 1:
        return x
    summed = x.detach().clone()
    dist.all_reduce(summed)
    return _with_value(x, summed)


def shared(x: Tensor) -> Tensor:
    """x, of which every rank has the same value and its own rows' part of the gradient. Its gradient is whole, once DDP has averaged."""
    return x if count() == 1 else _with_value(x, x.detach())


def _with_value(x: Tensor, value: Tensor) -> Tensor:
    """`value`, with as many times the gradient of x as there are ranks: DDP averages, where a whole batch sums."""
    return _WithValue.apply(x, value)


class _WithValue(torch.autograd.Function):
    """Not `scaled + (value - scaled).detach()`: that differs from rank to rank in the last bit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * count(), None


def take_first(tensors: Sequence[Tensor]) -> None:
    """All ranks go on with rank 0's values of some tensors, in place."""
    if count() == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in same])
        dist.broadcast(flat, 0)
        for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(part.view_as(tensor))


def same_draws(device: torch.device) -> None:
    """All ranks draw on from rank 0's random state of `device`."""
    if count() == 1:
        return
    cuda = device.type == "cuda"
    state = torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state()
    state = state.to(device)
    dist.broadcast(state, 0)
    if cuda:
        torch.cuda.set_rng_state(state.cpu(), device)
    else:
        torch.set_rng_state(state)
