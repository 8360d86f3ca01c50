"""Grouped residual vector quantisation (method.md 2): plain lookup for every use, EMA learning for training.

`ResidualCodebooks` needs nothing but torch, so a checkpoint can be used wherever torch runs. `EmaQuantizer`
learns the same codebooks with vector-quantize-pytorch, imported when the first one is built, and hands them
over with `codebooks()`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jala_ray.config import TokenizerConfig
from jala_ray.tokenizer import ranks
from jala_ray.types import ConfigError


class ResidualCodebooks(nn.Module):
    """G groups x L levels of codebooks over vectors of width D; every group quantises its own D/G channels.

    Level 0 codes a vector, every later level codes what the levels before it left over.
    """

    def __init__(self, width: int, groups: int, levels: int, codes: int) -> None:
        super().__init__()
        self.groups, self.levels, self.codes = groups, levels, codes
        # Halving scales give an untrained tokenizer a sensible coarse-to-fine order; training replaces all of
        # it.
        scale = 0.5 ** torch.arange(levels).view(1, levels, 1, 1)
        self.register_buffer("vectors", torch.randn(groups, levels, codes, width // groups) * scale)
        self.vectors: Tensor

    def encode(self, z: Tensor) -> Tensor:
        """z (C, T, D) -> codes (C, G, T, L) int64, the nearest code vector level by level."""
        residual = z.unflatten(-1, (self.groups, -1)).movedim(2, 0).flatten(1, 2)  # (G, C*T, D/G)
        codes = []
        for book in self.vectors.unbind(1):
            # |r - v|^2 up to |r|^2, which is the same for every v.
            score = book.square().sum(-1).unsqueeze(1) - 2 * residual @ book.mT
            code = score.argmin(-1)  # (G, C*T)
            residual = residual - _take(book, code)
            codes.append(code)
        return torch.stack(codes, -1).unflatten(1, z.shape[:2]).movedim(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes (C, G, T, L) -> quantised vectors (C, T, D)."""
        flat = codes.movedim(1, 0).flatten(1, 2)  # (G, C*T, L)
        z = _take(self.vectors[:, 0], flat[..., 0])
        for level in range(1, self.levels):
            z = z + _take(self.vectors[:, level], flat[..., level])
        return z.unflatten(1, (codes.shape[0], codes.shape[2])).permute(1, 2, 0, 3).flatten(2)


def _take(book: Tensor, code: Tensor) -> Tensor:
    """Rows `code` (G, M) of `book` (G, codes, D/G) -> (G, M, D/G)."""
    return book.gather(1, code.unsqueeze(-1).expand(-1, -1, book.shape[-1]))


class EmaQuantizer(nn.Module):
    """The training-time quantiser: EMA codebooks, k-means start, dead codes replaced; all ranks learn the same.

    `vectors_per_step` is the number of latent vectors a step sees over all ranks; a code is dead when its
    moving-average count falls under `dead_code_threshold` x the uniform share vectors_per_step / codes, and
    is then replaced by a vector of the batch that starts with one uniform share of credit.
    """

    def __init__(self, config: TokenizerConfig, vectors_per_step: int) -> None:
        super().__init__()
        try:
            from vector_quantize_pytorch import GroupedResidualVQ, VectorQuantize
        except ImportError as error:
            raise ConfigError(
                "tokenizer training",
                str(error),
                "the package vector-quantize-pytorch (it is not needed to encode or decode)",
                "Install it with `pip install vector-quantize-pytorch`, or load a trained tokenizer.",
            ) from error
        share = vectors_per_step / config.codes
        self.vq = GroupedResidualVQ(
            dim=config.width,
            groups=config.groups,
            num_quantizers=config.levels,
            codebook_size=config.codes,
            decay=config.decay,
            kmeans_init=True,
            kmeans_iters=config.kmeans_iters,
            threshold_ema_dead_code=config.dead_code_threshold * share,
            commitment_weight=1.0,
            rotation_trick=False,
            sync_codebook=False,  # each rank sees the whole batch
        )
        for layer in self.vq.modules():
            if isinstance(layer, VectorQuantize):
                # The default credit is the threshold itself: an unlucky newcomer would be replaced at the
                # next step.
                layer._codebook.reset_cluster_size = share

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (C, T, D) of this rank -> quantised (C, T, D), commitment loss () of all ranks, codes (C, G, T, L) int64.

        The gradient passes straight through `quantised`. The commitment is the squared distance of each
        residual to its code vector, averaged over channels, levels and groups.
        """
        ranks.same_draws(z.device)
        whole, mine = ranks.gathered(z)
        quantised, codes, commitment = self.vq(whole)
        if self.training:
            ranks.take_first([buffer.data for buffer in self.vq.buffers()])
        # The library's estimator adds one identity per level, so its gradient is L times too large; this one
        # is exact.
        return z + (quantised[mine] - z).detach(), ranks.shared(commitment.mean()), codes[:, mine].transpose(0, 1)

    def codebooks(self) -> Tensor:
        """The code vectors as learned so far, (G, L, codes, D/G)."""
        return self.vq.codebooks.detach()
