"""Dropout whose masks are functions of a sample's key: the same on any rank, in any micro-batch, after any resume.

A mask's bit is a hash of (key of the sample, number of the place in the network, number of the element in the sample), by the finaliser of
MurmurHash3 over 32 bits; no generator is moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ALL = 0xFFFFFFFF
_GOLDEN = 0x9E3779B1


@dataclass(frozen=True)
class KeyedDropout:
    """Of one forward pass."""

    key: Tensor
    """(S,) int64, of the samples."""
    rate: float

    def __call__(self, x: Tensor, place: int) -> Tensor:
        """`x` (S, T, D) with elements dropped and the others made larger; `place` numbers where in the network this is.

        An element's number is that of its token times the width, and its place in it: tokens that fill a batch up change no mask.
        """
        keep = bits(self.key, place, x[0].numel()) >= round(self.rate * (_ALL + 1))
        return torch.where(keep.view_as(x), x / (1 - self.rate), 0.0)


def bits(key: Tensor, place: int, count: int) -> Tensor:
    """Keys (S,) -> (S, count) int64, uniform in [0, 2^32)."""
    own = mixed(mixed((key & _ALL) ^ mixed((key >> 32) & _ALL)) ^ (place * _GOLDEN & _ALL))
    return mixed((torch.arange(count, device=key.device) * _GOLDEN + own[:, None]) & _ALL)


def mixed(x: Tensor) -> Tensor:
    """A permutation of [0, 2^32), int64: each bit of what comes out depends on all bits of what goes in."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B & _ALL
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & _ALL
    return x ^ (x >> 16)
