"""Inverse dynamics in closed form: what of a chunk's motion two frozen frames tell (docs/method.md 5, Grounded).

Kernel ridge regression on landmarks: with as many landmarks as chunks it is kernel ridge itself. Nothing here learns by gradient;
`training/teacher` fits it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from jala_ray.config import TeacherConfig
from jala_ray.types import CHUNK_FRAMES, FEATURE_DIM, WRIST_DIM, UserError

MOTION = CHUNK_FRAMES * FEATURE_DIM
WEIGHTS, FACTS = "teacher.safetensors", "teacher.json"
HELD_OUT = "held_out.json"
FLAT = 1e-6
"""A motion feature whose standard deviation is no larger (m, or of 6-D rotations) does not move, and is left out."""
NOTHING = 1e-12
"""A variance of features that is none."""
BLOCK = 256
"""Chunks whose features are in float64 at once."""


@dataclass(frozen=True)
class PairSight:
    """What of a frozen encoder's features is looked at."""

    grid: tuple[int, int]
    """Rows and columns of its patches."""
    cells: int
    """Parts a side that a picture is averaged in; a grid with fewer rows or columns keeps its own."""
    of_pairs: bool
    """Features are of pairs, so that a change is told by (v_t, v_t) beside (v_t, v_{t+delta})."""

    @property
    def parts(self) -> int:
        """Cells of a picture."""
        return min(self.cells, self.grid[0]) * min(self.cells, self.grid[1])

    def means(self, units: Tensor) -> Tensor:
        """Patches (U, P, Dv) -> means (U, cells, Dv) float32."""
        pictures = rearrange(units.float(), "u (r k) d -> u d r k", r=self.grid[0])
        means = F.adaptive_avg_pool2d(pictures, (min(self.cells, self.grid[0]), min(self.cells, self.grid[1])))
        return rearrange(means, "u d r k -> u (r k) d")

    def pooled(self, pairs: Tensor, still: Tensor | None = None) -> Tensor:
        """Patches (C, F, P, Dv), of pairs with `still` -> means (C, 2, cells, Dv) float32 of v_t (of stillness) and v_{t+delta} (of the
        pair).
        """
        frames = pairs if still is None else torch.cat([still, pairs], dim=1)
        return self.means(frames.flatten(0, 1)).unflatten(0, (-1, 2))


def _signed(vectors: Tensor) -> Tensor:
    """Columns (n, m), each with its largest entry positive: an eigenvector's sign is chance."""
    return vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()


def _scatter(values: Tensor, share: Tensor) -> Tensor:
    """Of values (E, n, D) about 0, weighted (E,) -> (D, D)."""
    weighted = values * (share / values.shape[1])[:, None, None]
    return values.flatten(0, 1).T @ weighted.flatten(0, 1)


class PairInputs(nn.Module):
    """Frozen features of a pair -> what the regression reads: principal channels, in cells, of v_t, of v_{t+delta} and of their change."""

    def __init__(self, sight: PairSight, feature_dim: int, channels: int) -> None:
        super().__init__()
        self.sight = sight
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("channels", torch.zeros(feature_dim, channels))
        self.register_buffer("weights", torch.ones(3))
        self.mean: Tensor
        self.channels: Tensor
        self.weights: Tensor
        """Of v_t, v_{t+delta} and change in the distance between two pairs."""

    @property
    def size(self) -> int:
        return 3 * self.sight.parts * self.channels.shape[1]

    def forward(self, pairs: Tensor, still: Tensor | None = None) -> Tensor:
        """Frames (C, 2, P, Dv), or an encoder of pairs' (C, 1, P, Dv) with `still` of (v_t, v_t) -> (C, size) float32."""
        return self.weighed(self.project(self.sight.pooled(pairs, still)))

    def project(self, cells: Tensor) -> Tensor:
        """`PairSight.pooled` (C, 2, cells, Dv) -> its principal channels (C, 2, cells, channels)."""
        return (cells - self.mean) @ self.channels

    def weighed(self, projected: Tensor) -> Tensor:
        """Principal channels (C, 2, cells, channels) -> (C, size)."""
        first, second = projected.unbind(1)
        parts = torch.stack([first, second, second - first], dim=1) * self.weights[:, None, None]
        return parts.flatten(1)

    def fit(self, cells: Tensor, share: Tensor) -> None:
        """Mean and principal channels of pooled frames (E, 2, cells, Dv), weighted (E,) with sum 1: those of the pictures and of the
        changes. In blocks: a sample of large features is gigabytes in float64. Raises `UserError` for features that tell nothing.
        """
        mean = (share[:, None] * cells.mean((1, 2), dtype=torch.float64)).sum(0)
        pictures, moved = torch.zeros(2, len(mean), len(mean), dtype=torch.float64)
        for part, weight in zip(cells.split(BLOCK), share.split(BLOCK), strict=True):
            frames = part.double() - mean
            pictures += _scatter(frames.flatten(1, 2), weight)
            moved += _scatter(frames[:, 1] - frames[:, 0], weight)
        if not pictures.trace() > NOTHING:
            expected = "pictures that differ, in finite numbers"
            raise UserError("features of labelled clips", f"variance {float(pictures.trace()):.3g}", expected)
        _, vectors = torch.linalg.eigh(pictures / pictures.trace() + moved / moved.trace().clamp(min=NOTHING))
        chosen = _signed(vectors.flip(1)[:, : self.channels.shape[1]])
        whole = (chosen.T @ pictures @ chosen).trace().clamp(min=NOTHING).sqrt()
        self.mean.copy_(mean)
        self.channels.copy_(chosen / whole)


class MotionDirections(nn.Module):
    """The few numbers that a chunk's motion comes down to: principal directions of its standardised features.

    Wrist and fingers have half of the variance each, as they have half of the codes.
    """

    def __init__(self, directions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(MOTION))
        self.register_buffer("scale", torch.ones(MOTION))
        self.register_buffer("directions", torch.zeros(MOTION, directions))
        self.mean: Tensor
        self.scale: Tensor
        """What a feature is multiplied by; 0 for one that does not move."""
        self.directions: Tensor

    def fit(self, motion: Tensor, share: Tensor) -> None:
        """From features (E, 15, 99) of labelled chunks, weighted (E,) with sum 1."""
        flat, share = motion.double().flatten(1), share[:, None]
        mean = (share * flat).sum(0)
        deviation = (share * (flat - mean).square()).sum(0).sqrt()
        moving = deviation > FLAT
        wrist = (torch.arange(MOTION) % FEATURE_DIM < WRIST_DIM) & moving
        scale = torch.zeros_like(mean)
        for part in (wrist, moving & ~wrist):
            scale[part] = 1 / (deviation[part] * (2 * part.sum()).sqrt())
        spread = (flat - mean) * scale
        _, vectors = torch.linalg.eigh(spread.T @ (share * spread))
        chosen = _signed(vectors.flip(1)[:, : self.directions.shape[1]])
        for buffer, value in ((self.mean, mean), (self.scale, scale), (self.directions, chosen)):
            buffer.copy_(value)

    def forward(self, motion: Tensor) -> Tensor:
        """Features (E, 15, 99) -> (E, R); their variances sum to at most 1."""
        return ((motion.float().flatten(1) - self.mean) * self.scale) @ self.directions

    def back(self, directions: Tensor) -> Tensor:
        """(E, R) -> the features (E, 15, 99) that come down to it, with the mean of what the directions don't tell."""
        moved = torch.where(self.scale > 0, directions @ self.directions.T / self.scale.clamp(min=1e-12), 0.0)
        return (self.mean + moved).unflatten(1, (CHUNK_FRAMES, FEATURE_DIM))


class MotionReader(nn.Sequential):
    """The learned form: the inputs of a pair, three layers, the motion of both hands."""

    def __init__(self, inputs: int, width: int, directions: int) -> None:
        super().__init__(
            nn.LayerNorm(inputs),
            nn.Linear(inputs, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, 2 * directions),
            nn.Unflatten(-1, (2, directions)),
        )


class InverseDynamics(nn.Module):
    """Which motion of either hand leads from v_t to v_{t+delta}.

    k((x, hand), (x', hand')) = exp(-|x - x'|^2 / (2 bandwidth^2)), times `other_hand` where the hands differ: what one hand's labels say
    counts that much for the other.
    """

    def __init__(self, inputs: PairInputs, motion: MotionDirections, landmarks: int) -> None:
        super().__init__()
        self.inputs, self.motion = inputs, motion
        directions = motion.directions.shape[1]
        self.register_buffer("landmarks", torch.zeros(landmarks, inputs.size))
        self.register_buffer("landmark_hand", torch.zeros(landmarks, dtype=torch.int64))
        self.register_buffer("bandwidth", torch.ones(()))
        self.register_buffer("other_hand", torch.ones(()))
        self.register_buffer("weights", torch.zeros(landmarks, directions))
        self.register_buffer("bias", torch.zeros(directions))
        self.landmarks: Tensor
        self.landmark_hand: Tensor
        self.bandwidth: Tensor
        self.other_hand: Tensor
        self.weights: Tensor
        self.bias: Tensor
        self.requires_grad_(False)

    @classmethod
    def unfitted(cls, config: TeacherConfig, grid: tuple[int, int], feature_dim: int, of_pairs: bool) -> Self:
        """With its largest sizes, for what asks of sizes alone."""
        inputs = PairInputs(PairSight(grid, config.cells, of_pairs), feature_dim, min(config.channels, feature_dim))
        return cls(inputs, MotionDirections(config.directions), config.landmarks)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], sight: PairSight) -> Self:
        """From its `state_dict`, whose shapes are its sizes."""
        inputs = PairInputs(sight, *tensors["inputs.channels"].shape)
        made = cls(inputs, MotionDirections(tensors["motion.directions"].shape[1]), len(tensors["landmarks"]))
        made.load_state_dict(dict(tensors))
        return made

    def kernel(self, x: Tensor) -> Tensor:
        """Inputs (C, size) -> their likeness to the landmarks, (C, M), whatever the hands."""
        squares = x.square().sum(-1, keepdim=True) + self.landmarks.square().sum(-1) - 2 * x @ self.landmarks.T
        return torch.exp(squares.clamp(min=0) / (-2 * self.bandwidth.square()))

    def hands(self) -> Tensor:
        """(2, M): what a landmark counts for each hand."""
        return torch.where(
            self.landmark_hand == torch.arange(2, device=self.landmarks.device)[:, None], 1.0, self.other_hand
        )

    @torch.no_grad()
    def forward(self, pairs: Tensor, still: Tensor | None = None) -> Tensor:
        """Frozen features as `PairInputs` -> motion of each hand (C, 2, R) float32, in the directions of `motion`."""
        with torch.autocast(pairs.device.type, enabled=False):
            alike = self.kernel(self.inputs(pairs, still))
            return torch.stack([(alike * own) @ self.weights + self.bias for own in self.hands()], dim=1)


@dataclass(frozen=True)
class Teacher:
    """A fitted teacher as it is stored: with its run's assets, in checkpoints, and beside a cache."""

    tensors: Mapping[str, Tensor]
    sight: PairSight
    report: Mapping[str, Any]
    """What its fit said of itself: `training.teacher.fit.Report`."""
    held_out: Sequence[Mapping[str, Any]] = ()
    """Some labelled chunks, each told by a fit without its fold: `training.teacher.fit.held_out`."""

    def build(self) -> InverseDynamics:
        return InverseDynamics.of(self.tensors, self.sight)

    def facts(self) -> dict[str, Any]:
        """What `teacher.json` holds."""
        return {"sight": dataclasses.asdict(self.sight), "report": self.report}

    def save(self, folder: Path) -> None:
        """`teacher.safetensors`, `teacher.json` and `held_out.json` in a local folder."""
        safetensors.torch.save_file({name: t.contiguous() for name, t in self.tensors.items()}, folder / WEIGHTS)
        (folder / FACTS).write_text(json.dumps(self.facts(), indent=1, allow_nan=False))
        (folder / HELD_OUT).write_text(json.dumps(list(self.held_out), allow_nan=False))

    @classmethod
    def load(cls, folder: Path) -> Teacher | None:
        """None where the folder holds none."""
        if not (folder / FACTS).exists():
            return None
        facts = json.loads((folder / FACTS).read_text())
        sight = facts["sight"] | {"grid": tuple(facts["sight"]["grid"])}
        held_out = json.loads((folder / HELD_OUT).read_text()) if (folder / HELD_OUT).exists() else ()
        return cls(safetensors.torch.load_file(folder / WEIGHTS), PairSight(**sight), facts["report"], held_out)
