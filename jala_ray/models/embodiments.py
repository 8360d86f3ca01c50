"""Layers of which every robot has its own: encoders of states and actions, decoder of actions (method.md 10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Robots:
    """Which samples of a batch are whose."""

    groups: tuple[tuple[int, Tensor | None], ...]
    """Number of a robot, and its samples (n,) int64; None: all."""

    @classmethod
    def of(cls, number: Tensor) -> Robots:
        """From the robots' numbers (S,). The host reads them."""
        present = number.unique().tolist()
        if len(present) == 1:
            return cls(((present[0], None),))
        return cls(tuple((robot, (number == robot).nonzero()[:, 0]) for robot in present))

    @classmethod
    def all(cls, robot: int = 0) -> Robots:
        return cls(((robot, None),))

    def each(self, x: Tensor, call: Callable[[int, Tensor], Tensor]) -> Tensor:
        """`call(robot, samples)` of each robot's samples of `x` (S, ...), put together in the samples' order."""
        if len(self.groups) == 1:
            return call(self.groups[0][0], x)
        parts = [(at, call(robot, x[at])) for robot, at in self.groups if at is not None]
        order = torch.cat([at for at, _ in parts]).argsort()
        return torch.cat([part for _, part in parts])[order]


class RobotLinear(nn.Module):
    """A linear layer for each robot."""

    def __init__(self, robots: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.Linear(fan_in, fan_out) for _ in range(robots))

    def forward(self, x: Tensor, robots: Robots) -> Tensor:
        """(S, T, fan_in) -> (S, T, fan_out)."""
        return robots.each(x, lambda robot, own: self.each[robot](own))


class RobotMlp(nn.Module):
    """Two of them with a ReLU between: encoder of states, decoder of actions."""

    def __init__(self, robots: int, fan_in: int, hidden: int, fan_out: int) -> None:
        super().__init__()
        self.first, self.second = RobotLinear(robots, fan_in, hidden), RobotLinear(robots, hidden, fan_out)

    def forward(self, x: Tensor, robots: Robots) -> Tensor:
        return self.second(F.relu(self.first(x, robots)), robots)


class ActionEncoder(nn.Module):
    """A noised action and its flow time: linear, joined with sines and cosines of the time, linear, swish, linear."""

    def __init__(self, robots: int, action: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.action = RobotLinear(robots, action, width)
        self.joined = RobotLinear(robots, 2 * width, width)
        self.out = RobotLinear(robots, width, width)

    def forward(self, noised: Tensor, bucket: Tensor, robots: Robots) -> Tensor:
        """Noised actions (S, H, A), flow time's bucket (S,) -> (S, H, width)."""
        x = self.action(noised, robots)
        time = waves(bucket, self.width).to(x)[:, None].expand_as(x)
        return self.out(F.silu(self.joined(torch.cat([x, time], -1), robots)), robots)


def waves(number: Tensor, width: int, *, cosines_first: bool = False, apart: int = 0) -> Tensor:
    """Numbers (S,) -> (S, width) float64: sines and cosines of wavelengths from 2 pi to about 2 pi * 10,000.

    `apart` 1 makes the last wavelength that itself, as diffusion models have it.
    """
    half = width // 2
    frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=number.device) / (half - apart))
    angle = number.double()[:, None] * frequency
    both = (angle.cos(), angle.sin()) if cosines_first else (angle.sin(), angle.cos())
    return torch.cat(both, -1)
