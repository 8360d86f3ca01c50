"""Alignment of h with the latent action of its chunk: where, how far, and how much it weighs (method.md 5; eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jala_ray.batch import Batch, rows_at
from jala_ray.config import AlignConfig
from jala_ray.objectives.base import full, sample_mean

DISTANCES = {
    "l1": lambda h, z: (h - z).abs().mean(dim=-1),
    "cosine": lambda h, z: 1 - F.cosine_similarity(h, z, dim=-1),
}
"""Of rows (M, D) of h and z -> (M,)."""


class Projector(nn.Sequential):
    """Two layers between h and what it is compared with."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


def scheduled(align: AlignConfig, progress: float) -> float:
    """lambda when a share `progress` of the steps is done."""
    ramp = {"constant": 1.0, "warmup": progress / align.schedule_share, "decay": (1 - progress) / align.schedule_share}
    return align.weight * min(1.0, ramp[align.schedule])


def gather_latents(latents: Tensor, row: Tensor, batch: Batch, at: Tensor) -> Tensor:
    """Latents (R, 2 hands, K, D) at places `at` (M,) of the batch: row `row` (M,), the token's own hand and k -> (M, D)."""
    return latents[row, rows_at(batch.hand, at), rows_at(batch.k, at)]


def of_pairs(latents: Tensor, batch: Batch) -> Tensor:
    """Latents (C, 2 hands, K, D) of the batch's pairs, at the M places `batch.pair_at` -> (M, D)."""
    return gather_latents(latents, rows_at(batch.pair, batch.pair_at), batch, batch.pair_at)


def align_loss(align: AlignConfig, batch: Batch, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """L_align: at the M places `batch.pair_at`, `h` (M, D) as it is compared and its targets `z` (M, D) -> (S,) mean over the sample's
    places, (S,) has. Who learns is the caller's choice: it detaches what is to stand still."""
    at = batch.pair_at
    if align.direction == "anchored":
        h, z = anchored(h, z, rows_at(batch.target, at)[:, None] >= 0)
    distance = DISTANCES[align.distance](full(h), full(z))
    if align.reduction == "sum":
        distance = distance * h.shape[-1]
    mean, has = sample_mean(distance, rows_at(batch.sample, at), len(batch.weight))
    if align.clips == "all":
        return mean, has
    counts = labelled_samples(batch) == (align.clips == "labelled")
    return mean.where(counts, 0.0), has & counts


def anchored(h: Tensor, z: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """The same values; gradient goes to z where `labelled` (M, 1), to h elsewhere."""
    return h.detach().where(labelled, h), z.where(labelled, z.detach())


def labelled_samples(batch: Batch) -> Tensor:
    """(S,) bool: the sample has a labelled chunk, of whatever part of it."""
    size = len(batch.weight)
    # Tokens without a code are counted for a sample beyond the last, so that the host waits for nothing.
    owner = batch.sample.where(batch.target >= 0, size).flatten()
    return torch.zeros(size + 1, dtype=torch.bool, device=owner.device).index_fill(0, owner, True)[:size]
