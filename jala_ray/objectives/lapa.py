"""LAPA-dagger: a latent-action model whose codes are learned by reconstruction, then a VLA that predicts the codes (method.md 9).

First stage (`LapaActions`): an inverse model reads the frozen features of (v_t, v_{t+delta}) and gives M codes, a forward model makes
the features of v_{t+delta} from those of v_t and the codes, or its pixels, as LAPA itself. Second stage (`LapaCodes`): the frozen
inverse model names every chunk's codes, and the VLA predicts them. Real tokens follow: a run of `no_align` or `next_token` that begins
with the second stage's weights.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from jala_ray.batch import Batch, rows_at
from jala_ray.config import LapaActionsConfig, LapaCodesConfig, LatentActionConfig, PerceiverConfig
from jala_ray.models.perceiver import Perceiver, PerceiverLayer, patch_positions
from jala_ray.models.pixels import normalise_pixels, patches_of, standardised
from jala_ray.models.vla import VLA, MotionHead, Out
from jala_ray.objectives.base import Features, Losses, Objective, full, sample_mean, text_loss
from jala_ray.types import ConfigError

PATCH_PIXELS = 8
"""Side of a patch whose pixels are reconstructed: it is averaged to so many."""
RARE = 0.1
"""A code used less than this share of its codebook's mean (moving averages) may be replaced."""


def normalised(features: Tensor) -> Tensor:
    """Every patch's features (..., Dv) with mean 0 and variance 1, so that the loss has one scale for every encoder."""
    features = full(features)
    return F.layer_norm(features, features.shape[-1:])


class Codebooks(nn.Module):
    """M codebooks of V vectors: moving averages of the latents that fall to each, in fp32.

    Nothing in it is random, and a step's forward passes all see the same vectors: in training mode they add up what they met, and `update`
    applies it once. So the codebooks don't depend on micro-batches or ranks, and a resumed run goes on exactly. Each update replaces
    the rarest code of a codebook, if it is rare, by the step's worst-fitting latent; that also spreads them at the start.
    """

    def __init__(self, tokens: int, codes: int, width: int, decay: float) -> None:
        super().__init__()
        self.codes, self.decay = codes, decay
        self.register_buffer("vectors", torch.randn(tokens, codes, width))
        self.register_buffer("usage", torch.zeros(tokens, codes))
        self.register_buffer("total", torch.zeros(tokens, codes, width))
        # Of the step so far: how many latents fell to each code, their sum, and for each codebook the worst fit (error, latent).
        self.register_buffer("met", torch.zeros(tokens, codes), persistent=False)
        self.register_buffer("met_total", torch.zeros(tokens, codes, width), persistent=False)
        self.register_buffer("worst", torch.zeros(tokens, 1 + width), persistent=False)
        self.vectors: Tensor
        self.usage: Tensor
        self.total: Tensor
        self.met: Tensor
        self.met_total: Tensor
        self.worst: Tensor

    def forward(self, z: Tensor) -> Tensor:
        """Latents (C, M, W) -> the nearest code of each one's codebook (C, M)."""
        return (z[:, :, None] - self.vectors).square().sum(-1).argmin(-1)

    def look_up(self, codes: Tensor) -> Tensor:
        """(C, M) -> vectors (C, M, W)."""
        return self.vectors[torch.arange(codes.shape[1], device=codes.device), codes]

    @torch.no_grad()
    def meet(self, z: Tensor, codes: Tensor) -> None:
        """Remember latents (C, M, W) and their codes (C, M) until `update`."""
        if not len(z):
            return
        book = torch.arange(z.shape[1], device=z.device)
        flat = (codes + book * self.codes).flatten()
        self.met.view(-1).index_add_(0, flat, torch.ones_like(flat, dtype=self.met.dtype))
        self.met_total.flatten(0, 1).index_add_(0, flat, z.flatten(0, 1))
        error, row = (z - self.look_up(codes)).square().mean(-1).max(0)  # (M,)
        self._keep_worst(torch.cat([error[:, None], z[row, book]], -1))

    def _keep_worst(self, candidate: Tensor) -> None:
        self.worst.copy_(torch.where(candidate[:, :1] > self.worst[:, :1], candidate, self.worst))

    @torch.no_grad()
    def update(self) -> None:
        """Apply what all ranks have met since the last update. Every rank calls it."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self.met)
            dist.all_reduce(self.met_total)
            everyones = [torch.empty_like(self.worst) for _ in range(dist.get_world_size())]
            dist.all_gather(everyones, self.worst)
            for candidate in everyones:
                self._keep_worst(candidate)
        self.usage.lerp_(self.met, 1.0 - self.decay)
        self.total.lerp_(self.met_total, 1.0 - self.decay)
        used = (self.usage > 1e-6)[..., None]
        self.vectors.copy_(torch.where(used, self.total / self.usage.clamp(min=1e-6)[..., None], self.vectors))
        self._replace_rarest()
        self.forget()

    def forget(self) -> None:
        """Drop what was met since the last update."""
        for seen in (self.met, self.met_total, self.worst):
            seen.zero_()

    def _replace_rarest(self) -> None:
        """The newcomer begins with the mean usage, so that it has time to find latents of its own."""
        mean, (least, rarest) = self.usage.mean(-1), self.usage.min(-1)
        book = torch.arange(len(rarest), device=rarest.device)
        replaced = (least <= RARE * mean) & (self.worst[:, 0] > 0)
        book, rarest, newcomer, credit = book[replaced], rarest[replaced], self.worst[replaced, 1:], mean[replaced]
        self.vectors[book, rarest] = newcomer
        self.usage[book, rarest] = credit
        self.total[book, rarest] = newcomer * credit[:, None]


class LatentActions(nn.Module):
    """Inverse dynamics: which of V^M actions leads from v_t to v_{t+delta}. Queries over both frames, then the codebooks."""

    def __init__(
        self, config: LatentActionConfig, perceiver: PerceiverConfig, feature_dim: int, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        # The perceiver's two halves, elsewhere a hand each, are here one latent: a pair of frames has one action.
        self.inverse = Perceiver(perceiver, config.tokens, feature_dim, grid, config.width // 2)
        self.codebooks = Codebooks(config.tokens, config.codes, config.width, config.decay)

    def latents(self, pairs: Tensor) -> Tensor:
        """Normalised features of pairs (C, 2, P, Dv) -> (C, M, W), in fp32."""
        return full(rearrange(self.inverse(pairs), "c half m w -> c m (half w)"))

    def forward(self, pairs: Tensor) -> Tensor:
        """Normalised features of pairs (C, 2, P, Dv) -> codes (C, M)."""
        return self.codebooks(self.latents(pairs))


class ForwardModel(nn.Module):
    """Forward dynamics: the patches of v_t ask the codes and one another, and say how they will differ."""

    def __init__(
        self,
        config: LatentActionConfig,
        perceiver: PerceiverConfig,
        feature_dim: int,
        grid: tuple[int, int],
        out_dim: int,
    ) -> None:
        super().__init__()
        width = perceiver.width
        self.project, self.read = nn.Linear(feature_dim, width), nn.Linear(config.width, width)
        self.code_embedding = nn.Parameter(0.02 * torch.randn(config.tokens, width))
        self.register_buffer("positions", patch_positions(grid, width), persistent=False)
        self.layers = nn.ModuleList(PerceiverLayer(width, perceiver.heads) for _ in range(perceiver.layers))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, out_dim)

    def forward(self, first: Tensor, vectors: Tensor, shown: Tensor) -> Tensor:
        """Normalised features of v_t (C, P, Dv), vectors of the codes (C, M, W), and what is `shown` of v_t (C, P, X), the same features or
        its pixels -> the same of v_{t+delta} (C, P, X). C > 0."""
        patches = self.project(first) + self.positions
        codes = self.read(vectors) + self.code_embedding
        for layer in self.layers:
            patches = layer(patches, codes)
        return shown + full(self.out(self.norm(patches)))


class LapaActions(Objective):
    """First stage. Each boundary pair counts once, whether one hand is aligned with it or two; the VLA is frozen and its output unread."""

    needs_features = True

    def __init__(self, config: LapaActionsConfig, vla: VLA, feature_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        vla.requires_grad_(False)
        self.pixels, self.grid = config.reconstruct == "pixels", grid
        self.columns = ("pairs", "frames") if self.pixels else ("pairs",)
        out_dim = 3 * PATCH_PIXELS**2 if self.pixels else feature_dim
        self.commitment = config.actions.commitment
        self.actions = LatentActions(config.actions, config.perceiver, feature_dim, grid)
        self.forward_model = ForwardModel(config.actions, config.perceiver, feature_dim, grid, out_dim)

    def loss(self, vla: VLA, batch: Batch, features: Features | None, out: Out) -> Losses:
        """Reconstruction of v_{t+delta}'s features or pixels, and commitment of the latents to their codes; means over a sample's pairs."""
        assert features is not None
        pairs = normalised(features.pairs)
        reconstruction, commitment = self._errors(pairs, self._shown(batch, pairs))
        at = batch.pair_at
        owner = torch.zeros(len(reconstruction), dtype=torch.int64, device=at.device)
        owner[rows_at(batch.pair, at)] = rows_at(batch.sample, at)
        losses = Losses({}, {})
        for name, value in {"reconstruction": reconstruction, "commitment": commitment}.items():
            losses.terms[name], losses.has[name] = sample_mean(value, owner, len(batch.weight))
        return losses

    def _shown(self, batch: Batch, pairs: Tensor) -> Tensor:
        """What is reconstructed of the frames of each pair, (C, 2, P, X): their normalised features, or their pixels."""
        if not self.pixels:
            return pairs
        assert batch.frames is not None and batch.pairs is not None
        patches = standardised(patches_of(normalise_pixels(batch.frames), self.grid, PATCH_PIXELS))
        return patches[batch.pairs]

    def _errors(self, pairs: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised features (C, 2, P, Dv), and what is `shown` -> mean squared errors (C,) of the reconstruction, and of the latents
        from their codes.
        """
        if not len(pairs):
            return pairs.new_zeros(0), pairs.new_zeros(0)
        z = self.actions.latents(pairs)
        codes = self.actions.codebooks(z)
        vectors = self.actions.codebooks.look_up(codes)
        if self.training:
            self.actions.codebooks.meet(z.detach(), codes)
        straight = z + (vectors - z).detach()  # the gradient passes the codes by
        error = (self.forward_model(pairs[:, 0], straight, shown[:, 0]) - shown[:, 1]).square().mean((1, 2))
        return error, (z - vectors).square().mean((1, 2))

    def term_weights(self) -> dict[str, float]:
        return {"reconstruction": 1.0, "commitment": self.commitment}

    def after_step(self) -> None:
        self.actions.codebooks.update()

    def forget_step(self) -> None:
        self.actions.codebooks.forget()

    @torch.no_grad()
    def monitors(self, batch: Batch, features: Features | None, out: Out) -> dict[str, float]:
        """Do the codes carry what happens? {} for fewer than two pairs.

        `copy_ratio` reconstruction error / error of what v_t shows in its place (1: nothing gained); `swap_ratio` error with the next
        pair's codes / error with the own (1: the codes are ignored); `code_perplexity` codes in use, a mean over the codebooks.
        """
        if features is None or len(features.pairs) < 2:
            return {}
        pairs = normalised(features.pairs)
        codes, shown = self.actions(pairs), self._shown(batch, pairs)

        def error(predicted: Tensor) -> Tensor:
            return (predicted - shown[:, 1]).square().mean()

        vectors = self.actions.codebooks.look_up(codes)
        own, others = (error(self.forward_model(pairs[:, 0], v, shown[:, 0])) for v in (vectors, vectors.roll(1, 0)))
        return {
            "copy_ratio": float(own / error(shown[:, 0]).clamp(min=1e-12)),
            "swap_ratio": float(others / own.clamp(min=1e-12)),
            "code_perplexity": perplexity(codes, self.actions.codebooks.codes),
        }


def perplexity(codes: Tensor, count: int) -> float:
    """Codes (C, M) of `count` -> exp of the entropy of their use, a mean over the M codebooks."""
    share = F.one_hot(codes, count).double().mean(0)  # (M, V)
    return float((-(share * (share + 1e-30).log()).sum(-1)).exp().mean())


class LapaCodes(Objective):
    """Second stage: all chunks are [MASK]; position k of a chunk predicts code floor(k M / K) of the chunk's boundary pair.

    The two hands of a time step have the pair's codes in common. The motion head waits, frozen, for real tokens.
    """

    needs_features = True
    columns = ("pairs",)

    def __init__(self, config: LapaCodesConfig, vla: VLA, feature_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.tokens, self.chunk_tokens = config.actions.tokens, vla.vocab.chunk_tokens
        if self.tokens > self.chunk_tokens:
            expected = f"at most the {self.chunk_tokens} tokens of a chunk"
            raise ConfigError("objective.actions.tokens", self.tokens, expected)
        vla.motion_head.requires_grad_(False)
        self.actions = LatentActions(config.actions, config.perceiver, feature_dim, grid).requires_grad_(False)
        self.head = MotionHead(vla.backbone.hidden_size, self.tokens, config.actions.codes)

    def loss(self, vla: VLA, batch: Batch, features: Features | None, out: Out) -> Losses:
        """Cross-entropy of the codes at every chunk's positions, and of the answers of description samples."""
        logits, target, at, _ = self._predictions(batch, features, out)
        values = F.cross_entropy(logits, target, reduction="none")
        codes, has_codes = sample_mean(values, rows_at(batch.sample, at), len(batch.weight))
        text, has_text = text_loss(vla, batch, out)
        return Losses({"codes": codes, "text": text}, {"codes": has_codes, "text": has_text})

    def _predictions(self, batch: Batch, features: Features | None, out: Out) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (X, V) and codes (X,) at the X aligned positions, their places (X,), and their codebooks (X,)."""
        assert features is not None
        at = batch.pair_at
        book = rows_at(batch.k, at) * self.tokens // self.chunk_tokens
        with torch.no_grad():
            codes = self.actions(normalised(features.pairs))
        return full(self.head(out.final_at(at), book)), codes[rows_at(batch.pair, at), book], at, book

    def term_weights(self) -> dict[str, float]:
        return {"codes": 1.0, "text": 1.0}

    @torch.no_grad()
    def monitors(self, batch: Batch, features: Features | None, out: Out) -> dict[str, float]:
        """`code_accuracy` share of the codes predicted right, `code_majority` that of always naming a codebook's most frequent one."""
        logits, target, _, book = self._predictions(batch, features, out)
        if not len(target):
            return {}
        counts = torch.zeros(self.tokens, logits.shape[1], device=target.device)
        counts.index_put_((book, target), torch.ones_like(target, dtype=counts.dtype), accumulate=True)
        return {
            "code_accuracy": float((logits.argmax(-1) == target).float().mean()),
            "code_majority": float(counts.amax(-1).sum() / len(target)),
        }
