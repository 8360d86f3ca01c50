"""The perceiver that both the Latent Action Perceiver and the Latent State Perceiver are (method.md 5, supplement A.2)."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from jala_ray.config import PerceiverConfig


class Attention(nn.Module):
    """Multi-head attention with separate normalisation of queries' and keys' sources; self-attention when they are one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_kv = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """`x` (C, K, W) asks, `source` (C, M, W) answers -> (C, K, W), to be added to x."""
        key, value = self.to_kv(self.norm_kv(source)).chunk(2, dim=-1)
        split = "c t (h d) -> c h t d"
        q, k, v = (rearrange(t, split, h=self.heads) for t in (self.to_q(self.norm_q(x)), key, value))
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "c h t d -> c t (h d)"))


class FeedForward(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class PerceiverLayer(nn.Module):
    """Cross-attention to the frames' features, then self-attention among the latents, each with its feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cross, self.cross_ff = Attention(width, heads), FeedForward(width)
        self.self_attention, self.self_ff = Attention(width, heads), FeedForward(width)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        latents = latents + self.cross(latents, context)
        latents = latents + self.cross_ff(latents)
        latents = latents + self.self_attention(latents, latents)
        return latents + self.self_ff(latents)


def patch_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions of a (rows, columns) grid, row-major -> (P, W); W divisible by 4."""
    quarter = width // 4
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(quarter) / quarter)
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (row, column)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=-1)


class PerceiverBackbone(nn.Module):
    """Everything of the perceiver but its queries: LSP learns it by gradient, LAP follows by EMA."""

    def __init__(self, config: PerceiverConfig, feature_dim: int, grid: tuple[int, int], out_dim: int) -> None:
        super().__init__()
        width, change = config.width, config.reads == "change"
        self.out_dim = out_dim
        self.project = nn.Linear(2 * feature_dim if change else feature_dim, width)
        # First or second frame of the pair; without it z(a, b) = z(b, a) (method.md 5). Change has an order of its own.
        self.frame_embedding = None if change else nn.Parameter(0.02 * torch.randn(2, width))
        self.register_buffer("positions", patch_positions(grid, width), persistent=False)
        self.layers = nn.ModuleList(PerceiverLayer(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        # The output is doubled and split into a left and a right head (supplement A.2).
        self.to_vlm = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2 * out_dim))

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """Queries (K, W) read features (C, F, P, Dv), F = 2 frames or 1 pair encoding -> (C, 2 hands, K, D)."""
        context = self.tokens(features)
        latents = queries.expand(features.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, context)
        return rearrange(self.to_vlm(self.norm(latents)), "c k (hand d) -> c hand k d", hand=2)

    def tokens(self, features: Tensor) -> Tensor:
        """(C, F, P, Dv) -> what the queries read, (C, F * P, W), or (C, P, W) of [v_t, v_{t+delta} - v_t] (F = 2)."""
        if self.frame_embedding is None:
            first, second = features.unbind(1)
            return self.project(torch.cat([first, second - first], dim=-1)) + self.positions
        context = self.project(features) + self.positions + self.frame_embedding[: features.shape[1], None]
        return rearrange(context, "c f p w -> c (f p) w")


class Perceiver(nn.Module):
    """K learned queries over the features of a pair of frames: K latents in the VLM's width, for each hand.

    LAP reads (v_t, v_{t+delta}) and gives latent actions; LSP reads (v_0, v_0) and gives state latents. Same structure, same
    initial weights: build one and `copy.deepcopy` it.
    """

    def __init__(
        self, config: PerceiverConfig, n_queries: int, feature_dim: int, grid: tuple[int, int], out_dim: int
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(n_queries, config.width))
        self.backbone = PerceiverBackbone(config, feature_dim, grid, out_dim)

    def forward(self, features: Tensor) -> Tensor:
        """(C, F, P, Dv) -> (C, 2 hands, K, D). C = 0 is allowed."""
        if features.shape[0] == 0:  # attention kernels refuse an empty batch
            return features.new_zeros(0, 2, self.queries.shape[0], self.backbone.out_dim)
        return self.backbone(self.queries, features)

    def set_gradients(self, *, backbone: bool, queries: bool) -> None:
        """Choose which half learns by gradient; the other is moved by EMA or stays (method.md 5)."""
        self.backbone.requires_grad_(backbone)
        self.queries.requires_grad_(queries)


@torch.no_grad()
def decoupled_ema(lap: Perceiver, lsp: Perceiver, alpha: float) -> None:
    """Eqs. 6 and 7: LAP's backbone follows LSP's, LSP's queries follow LAP's, in fp32 by `lerp`."""
    torch._foreach_lerp_(list(lap.backbone.parameters()), list(lsp.backbone.parameters()), 1.0 - alpha)
    lsp.queries.lerp_(lap.queries, 1.0 - alpha)


@torch.no_grad()
def teacher_ema(lap: Perceiver, lsp: Perceiver, alpha: float) -> None:
    """LAP follows LSP whole, in fp32."""
    torch._foreach_lerp_(list(lap.parameters()), list(lsp.parameters()), 1.0 - alpha)
