"""Is the latent-action space alive? Figures that show a collapse of h and z (method.md 5)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jala_ray.batch import Batch, rows_at
from jala_ray.objectives.base import Features


def effective_rank(x: Tensor, scale: Tensor) -> float:
    """exp of the entropy of the normalised singular values of (M, D) rows.

    0 when x is rounding noise beside `scale`, the root mean square of what x was before it was centred.
    """
    if _rms(x) <= 1e-6 * scale:
        return 0.0
    # Singular values by the smaller of the two Gram matrices, several times faster; what rounding leaves of none counts as none.
    x = x.double() if x.shape[0] >= x.shape[1] else x.double().T
    squares = torch.linalg.eigvalsh(x.T @ x).clamp(min=0)
    singular = torch.where(squares > len(squares) * torch.finfo(squares.dtype).eps * squares[-1], squares, 0).sqrt()
    p = singular / singular.sum()
    return float(torch.exp(-(p * (p + 1e-30).log()).sum()))


@torch.no_grad()
def alignment_monitors(
    lap: Callable[[Tensor], Tensor], batch: Batch, features: Features, hidden: Tensor, targets: Tensor
) -> dict[str, float]:
    """Collapse monitors of one batch; {} when all of its pairs are of one clip. `targets` (C, 2 hands, K, D) are what h is compared with.

    rho = E|z(v_t, v_{t+delta}) - z(v_t, v_t)| / E|z - z of another clip|: 0 means that z ignores the second frame. For spread and
    effective rank z is centred for each (hand, k), so that only what depends on the pictures counts. `varying_h` is h's spread over its
    own size: near 0 h is a constant. Cosines compare h with its own chunk's target and with another clip's.
    """
    at = batch.pair_at
    row, hand, k = (rows_at(column, at) for column in (batch.pair, batch.hand, batch.k))
    pairs, hands = torch.unique(torch.stack([row, hand]), dim=1)  # every aligned hand-chunk once, C'
    owner = torch.empty(len(features.pairs), dtype=torch.int64, device=row.device)
    owner[row] = rows_at(batch.sample, at)
    other = _another(owner)
    if other is None:
        return {}
    latents = lap(features.pairs).float()  # (C, 2, K, D)
    varying = (latents - latents.mean(dim=0))[pairs, hands]
    figures = {
        "spread_z": float(_rms(varying)),
        "effective_rank_z": effective_rank(varying.flatten(0, 1), _rms(latents)),
    }
    z = latents[pairs, hands]
    if features.still is not None:
        moved = (z - lap(features.still).float()[pairs, hands]).abs().mean()
        between = (z - latents[other[pairs], hands]).abs().mean()
        figures["rho"] = float(moved / between.clamp(min=1e-12))

    # Means over each hand-chunk's aligned positions (of a labelled target only the masked ones).
    h = rows_at(hidden, at).float()
    index = torch.searchsorted(pairs * 2 + hands, row * 2 + hand)
    h_mean = _group_mean(h, index, len(pairs))
    targets = targets.float()
    own = _group_mean(targets[row, hand, k], index, len(pairs))
    foreign = _group_mean(targets[other[row], hand, k], index, len(pairs))
    centre_h, centre_z = h_mean.mean(0), own.mean(0)
    cosine = torch.nn.functional.cosine_similarity
    return figures | {
        "spread_h": float(_rms(h_mean - centre_h)),
        "varying_h": float(_rms(h_mean - centre_h) / _rms(h_mean).clamp(min=1e-12)),
        "effective_rank_h": effective_rank(h - h.mean(0), _rms(h)),
        "cos_matched": float(cosine(h_mean - centre_h, own - centre_z).mean()),
        "cos_shuffled": float(cosine(h_mean - centre_h, foreign - centre_z).mean()),
    }


def by_pair(values: Tensor, batch: Batch, sizes: tuple[int, int, int]) -> Tensor:
    """Values (M, D) at places `batch.pair_at` as targets (C, 2 hands, K, D) of the batch's pairs. Where a hand-chunk has no such place it
    holds the mean over its others, and where a hand has none that of the pair."""
    at, (pairs, hands, tokens) = batch.pair_at, sizes
    row, hand, k = (rows_at(column, at) for column in (batch.pair, batch.hand, batch.k))
    whole = _group_mean(values, row, pairs)[:, None].repeat(1, hands, 1).flatten(0, 1)
    chunk = row * hands + hand
    whole = whole.index_copy(0, chunk, _group_mean(values, chunk, pairs * hands)[chunk])
    every = whole[:, None].repeat(1, tokens, 1).flatten(0, 1)
    return every.index_copy(0, chunk * tokens + k, values).unflatten(0, sizes)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def _group_mean(values: Tensor, index: Tensor, groups: int) -> Tensor:
    """Mean of the rows (M, D) of each group (M,) -> (groups, D)."""
    total = values.new_zeros(groups, values.shape[1]).index_add(0, index, values)
    count = values.new_zeros(groups, 1).index_add(0, index, torch.ones_like(values[:, :1]))
    return total / count


def _another(owner: Tensor) -> Tensor | None:
    """For each entry, the index of the next one with a different owner; None when all have one owner."""
    n = len(owner)
    differs = owner[None, :] != owner[:, None]
    if not differs.any(dim=1).all():
        return None
    order = (torch.arange(n, device=owner.device)[None, :] - torch.arange(n, device=owner.device)[:, None]) % n
    return torch.where(differs, order, n).argmin(dim=1)
