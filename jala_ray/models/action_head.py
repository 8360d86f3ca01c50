"""The flow head: a diffusion transformer that tells how a robot's noised actions should move, after GR00T N1.5 (method.md 10).

    condition   LayerNorm and self-attention blocks over what is read of the VLM
    tokens      [state | learned future tokens | noised actions with their flow time]
    blocks      those at even places attend to the condition, those at odd places to the tokens; AdaLN by flow time (scale and shift, no
                gate) before attention, a plain norm before the MLP
    out         AdaLN, a linear layer, and the robot's own decoder at the actions' tokens

It runs in the precision of its weights: callers switch autocast off. Dropout is on each residual branch (`keyed_dropout.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jala_ray.config import ActionHeadConfig
from jala_ray.models.embodiments import ActionEncoder, RobotLinear, RobotMlp, Robots, waves
from jala_ray.models.keyed_dropout import KeyedDropout

TIME_WAVES = 256
"""Sines and cosines of flow time, from which AdaLN's scales and shifts are made."""
STD = 0.02
"""Of learned tokens and positions at the start."""
HEAD_SIZE = 64
"""Of a head of the condition's blocks, where the width is a multiple of it."""

Dropout = Callable[[Tensor, int], Tensor]
"""Of a residual branch (S, T, D), by the number of its place in the head."""


@dataclass(frozen=True)
class Condition:
    """What a head reads of the VLM."""

    tokens: Tensor
    """(S, M, D)."""
    seen: Tensor
    """(S, M) bool: those that are there."""
    key: Tensor | None = None
    """(S,) int64, of dropout; None: there is none."""


class HeadAttention(nn.Module):
    """Multi-head attention of tokens to themselves or to a condition of another width."""

    def __init__(self, width: int, heads: int, source: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(source, width), nn.Linear(source, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor, seen: Tensor | None = None) -> Tensor:
        """`x` (S, T, W) asks `source` (S, M, D), of which `seen` (S, M) bool may be looked at, None: all -> (S, T, W)."""
        parts = (self.query(x), self.key(source), self.value(source))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mask = None if seen is None else seen[:, None, None].expand(-1, -1, x.shape[1], -1)
        return self.out(F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2))


class HeadMlp(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))


class ConditionBlock(nn.Module):
    """A plain block over the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = width // HEAD_SIZE if width % HEAD_SIZE == 0 else 1
        self.norm, self.attention = nn.LayerNorm(width), HeadAttention(width, heads, width)
        self.mlp_norm, self.mlp = nn.LayerNorm(width), HeadMlp(width)

    def forward(self, x: Tensor, seen: Tensor, drop: Dropout, place: int) -> Tensor:
        normed = self.norm(x)
        x = x + drop(self.attention(normed, normed, seen), place)
        return x + drop(self.mlp(self.mlp_norm(x)), place + 1)


class ActionBlock(nn.Module):
    """A block of the transformer. `source` is the width of the condition that it attends to; None: it attends to its own tokens."""

    def __init__(self, width: int, heads: int, source: int | None) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = HeadAttention(width, heads, width if source is None else source)
        self.crosses = source is not None
        self.mlp_norm, self.mlp = nn.LayerNorm(width, elementwise_affine=False), HeadMlp(width)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, drop: Dropout, place: int) -> Tensor:
        """Tokens (S, T, W) at flow time (S, W)."""
        scale, shift = self.modulation(F.silu(time))[:, None].chunk(2, -1)
        normed = self.norm(x) * (1 + scale) + shift
        source = (condition.tokens, condition.seen) if self.crosses else (normed,)
        x = x + drop(self.attention(normed, *source), place)
        return x + drop(self.mlp(self.mlp_norm(x)), place + 1)


class ActionHead(nn.Module):
    """`forward` tells the velocity at noised actions; `read` alone what may be kept of a condition while its actions are integrated."""

    def __init__(self, config: ActionHeadConfig, condition: int) -> None:
        """`condition`: width of what is read of the VLM."""
        super().__init__()
        self.config = config
        width, robots = config.width, config.embodiments
        self.state = RobotMlp(robots, config.state_dim, config.hidden, width)
        self.action = ActionEncoder(robots, config.action_dim, width)
        self.position = nn.Parameter(STD * torch.randn(config.horizon, width))
        self.future = nn.Parameter(STD * torch.randn(config.future_tokens, width)) if config.future_tokens else None
        self.condition_norm = nn.LayerNorm(condition) if config.condition_layers else nn.Identity()
        self.condition = nn.ModuleList(ConditionBlock(condition) for _ in range(config.condition_layers))
        self.time = nn.Sequential(nn.Linear(TIME_WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            ActionBlock(width, config.heads, None if number % 2 else condition) for number in range(config.layers)
        )
        self.modulation = nn.Linear(width, 2 * width)
        self.norm, self.out = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, config.hidden)
        self.decoder = RobotMlp(robots, config.hidden, config.hidden, config.action_dim)

    @property
    def dtype(self) -> torch.dtype:
        return self.position.dtype

    def learns_for(self, robots: int) -> None:
        """Only what the first so many robots have learns: no gradient, optimizer state or decay for those that no run has."""
        for part in self.modules():
            if isinstance(part, RobotLinear):
                for number, layer in enumerate(part.each):
                    layer.requires_grad_(number < robots)

    def read(self, condition: Condition) -> Condition:
        """What the blocks attend to, of the condition as the VLM gives it."""
        drop, x = self._dropout(condition.key), self.condition_norm(condition.tokens)
        for number, block in enumerate(self.condition):
            x = block(x, condition.seen, drop, 2 * (self.config.layers + number))
        return replace(condition, tokens=x)

    def velocity(self, state: Tensor, noised: Tensor, bucket: Tensor, robots: Robots, read: Condition) -> Tensor:
        """Of noised actions (S, H, A) at flow time `bucket` (S,) int64, with the state (S, state_dim) and what was read -> (S, H, A)."""
        drop, count = self._dropout(read.key), noised.shape[0]
        tokens = [self.state(state[:, None], robots), self.action(noised, bucket, robots) + self.position]
        if self.future is not None:
            tokens.insert(1, self.future.expand(count, -1, -1))
        x, time = torch.cat(tokens, 1), self._time(bucket)
        for number, block in enumerate(self.blocks):
            x = block(x, time, read, drop, 2 * number)
        shift, scale = self.modulation(F.silu(time))[:, None].chunk(2, -1)
        x = self.out(self.norm(x) * (1 + scale) + shift)
        return self.decoder(x[:, -self.config.horizon :], robots)

    def forward(self, state: Tensor, noised: Tensor, bucket: Tensor, robots: Robots, condition: Condition) -> Tensor:
        """`velocity` with the condition as the VLM gives it."""
        return self.velocity(state, noised, bucket, robots, self.read(condition))

    def _time(self, bucket: Tensor) -> Tensor:
        return self.time(waves(bucket, TIME_WAVES, cosines_first=True, apart=1).to(self.dtype))

    def _dropout(self, key: Tensor | None) -> Dropout:
        if key is None or not self.training or not self.config.dropout:
            return _kept
        return KeyedDropout(key, self.config.dropout)


def _kept(x: Tensor, place: int) -> Tensor:
    return x


class OneRobot(nn.Module):
    """A head for samples of its first robot, called with tensors alone: what its costs are counted on."""

    def __init__(self, head: ActionHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, state: Tensor, noised: Tensor, bucket: Tensor, condition: Tensor, seen: Tensor) -> Tensor:
        key = torch.zeros_like(bucket) if self.head.training else None
        return self.head(state, noised, bucket, Robots.all(), Condition(condition, seen, key))

    def inputs(self, samples: int, tokens: int, condition: int) -> tuple[Tensor, ...]:
        """So many samples that read so many tokens of the VLM's width, empty, on the device that is the default."""
        config = self.head.config
        return (
            torch.empty(samples, config.state_dim),
            torch.empty(samples, config.horizon, config.action_dim),
            torch.zeros(samples, dtype=torch.int64),
            torch.empty(samples, tokens, condition, requires_grad=True),
            torch.ones(samples, tokens, dtype=torch.bool),
        )
