"""From labelled chunks to an inverse-dynamics teacher: what it reads, how near pairs must be, and how much it is smoothed are chosen by
held-out clips (docs/method.md 5, Grounded).
"""

from __future__ import annotations

import dataclasses
import json
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jala_ray.config import TeacherConfig
from jala_ray.hands.displacement import motion_targets
from jala_ray.models.inverse_dynamics import InverseDynamics, MotionDirections, PairInputs, Sight
from jala_ray.training.teacher.moments import FOLDS, Chosen, Moments, choose, solve
from jala_ray.types import UserError

SAMPLE = 8192
"""Hand-chunks from which everything but the regression itself is chosen; with no more than that they are all there is."""
SEARCHED = 1024
"""Landmarks while choices are compared."""
FEWEST = 40
"""Labelled hand-chunks without which nothing is fitted."""
READS = {
    "both frames and their change": (1.0, 1.0, 2.0),
    "mostly the change": (1.0, 1.0, 6.0),
    "the change": (0.0, 0.0, 1.0),
}
ABLATIONS = {"v_t alone": (1.0, 0.0, 0.0), "v_t+delta alone": (0.0, 1.0, 0.0), "the change alone": (0.0, 0.0, 1.0)}
"""Weights of v_t, v_{t+delta} and change."""
BANDWIDTHS = (1.0, 0.5, 2.0)
"""Times the median distance of two landmarks."""
OTHER_HANDS = (0.5, 0.1, 0.9)
ROUNDING = 1e-9
"""Directions of the landmarks' kernel with less than this share of the largest are noise."""


@dataclass
class LabelledChunks:
    """Some labelled hand-chunks (E), in memory."""

    cells: Tensor
    """(E, 2, cells, Dv) pooled features of v_t and v_{t+delta}."""
    motion: Tensor
    """(E, 15, 99) features."""
    hand: Tensor
    """(E,) int64."""
    domain: list[str]
    clip: list[str]

    def __len__(self) -> int:
        return len(self.hand)

    def first(self, count: int) -> LabelledChunks:
        """At most so many."""
        held = (self.cells[:count], self.motion[:count], self.hand[:count], self.domain[:count], self.clip[:count])
        return LabelledChunks(*held)

    @property
    def fold(self) -> Tensor:
        """(E,) a clip's chunks share one."""
        return torch.tensor([zlib.crc32(clip.encode()) % FOLDS for clip in self.clip])

    @classmethod
    def joined(cls, parts: Iterable[LabelledChunks]) -> LabelledChunks:
        held = list(parts)
        cells, motion, hand = (
            torch.cat([getattr(part, name) for part in held]) for name in ("cells", "motion", "hand")
        )
        domain, clip = ([word for part in held for word in getattr(part, name)] for name in ("domain", "clip"))
        return cls(cells, motion, hand, domain, clip)


@dataclass(frozen=True)
class Kernel:
    """What is chosen of a teacher beside its smoothing."""

    weights: tuple[float, float, float]
    bandwidth: float
    other_hand: float


@dataclass
class Report:
    """What a fit says of itself; `r2` and `reads` are of clips that were held out."""

    chunks: dict[str, int]
    r2: dict[str, dict[str, float]]
    """Domain -> `motion` (all directions), `wrist` and `finger` (displacement within the chunk)."""
    reads: dict[str, dict[str, dict[str, float]]]
    """The same from less: what it is that tells the motion."""
    kernel: dict[str, Any]
    penalty: float
    balance: float
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))


def fit(
    config: TeacherConfig,
    sample: LabelledChunks,
    every: Callable[[], Iterable[LabelledChunks]] | None,
    sight: Sight,
) -> tuple[InverseDynamics, Report]:
    """`sample`: at most `SAMPLE` chunks; `every`: streams all of them, or None where the sample is all. Raises `UserError` for too few."""
    if len(sample) < FEWEST:
        remedy = "Label more clips, or train with a preset that needs no teacher (jala, no_align)."
        raise UserError("labelled hand-chunks", len(sample), f"at least {FEWEST}, to fit the teacher", remedy)
    began, share = time.monotonic(), _even(sample.domain)
    bench = _Bench.of(config, sample, share, sight)
    kernel, _ = bench.search()
    reads = {name: bench.tried(replace(kernel, weights=weights)).r2 for name, weights in ABLATIONS.items()}
    teacher = bench.teacher(kernel, config.landmarks)
    features = _Features(teacher)
    moments = Moments()
    for part in [sample] if every is None else every():
        bench.add(moments, features, part)
    found = choose(moments, bench.targets, "motion")
    features.settle(solve(moments.mixed(found.balance), found.penalty))
    return teacher, Report(
        {domain: moments.count(domain) for domain in moments.domains},
        _plain(found.r2),
        {name: _plain(r2) for name, r2 in reads.items()},
        dataclasses.asdict(kernel),
        found.penalty,
        found.balance,
        round(time.monotonic() - began, 1),
    )


def _plain(r2: Any) -> dict[str, dict[str, float]]:
    return {domain: {name: round(value, 4) for name, value in found.items()} for domain, found in r2.items()}


def _even(domain: Sequence[str]) -> Tensor:
    """(E,) float64 with sum 1: every domain has the same part."""
    names, place, counts = np.unique(np.array(domain), return_inverse=True, return_counts=True)
    return torch.from_numpy(1.0 / (len(names) * counts[place]))


@dataclass
class _Bench:
    """A sample on which choices are compared."""

    sample: LabelledChunks
    inputs: PairInputs
    motion: MotionDirections
    order: Tensor
    """(E,) places in the sample, in the order in which they become landmarks: domains in turn."""
    targets: dict[str, slice]

    @classmethod
    def of(cls, config: TeacherConfig, sample: LabelledChunks, share: Tensor, sight: Sight) -> _Bench:
        width = sample.cells.shape[-1]
        inputs = PairInputs(sight, width, min(config.channels, width))
        inputs.fit(sample.cells, share)
        motion = MotionDirections(config.directions)
        motion.fit(sample.motion, share)
        draw = torch.from_numpy(np.random.default_rng(0).permutation(len(sample)))
        within, turn = dict[str, int](), torch.zeros(len(sample))
        for place in draw.tolist():
            name = sample.domain[place]
            turn[place] = within[name] = within.get(name, -1) + 1
        order = draw[turn[draw].argsort(stable=True)]
        sizes = {"motion": config.directions, "wrist": 15, "finger": 90}
        ends = np.cumsum([0, *sizes.values()]).tolist()
        targets = {name: slice(a, b) for name, a, b in zip(sizes, ends[:-1], ends[1:], strict=True)}
        return cls(sample, inputs, motion, order, targets)

    def search(self) -> tuple[Kernel, Chosen]:
        """One choice after another, each the best beside what has been chosen so far."""
        best = Kernel(next(iter(READS.values())), BANDWIDTHS[0], OTHER_HANDS[0])
        found = self.tried(best)
        both = len(self.sample.hand.unique()) > 1
        for name, values in (
            ("weights", tuple(READS.values())),
            ("other_hand", OTHER_HANDS if both else ()),
            ("bandwidth", BANDWIDTHS),
        ):
            for value in values[1:]:
                other = replace(best, **{name: value})
                if (score := self.tried(other)).score > found.score:
                    best, found = other, score
        return best, found

    def tried(self, kernel: Kernel) -> Chosen:
        features, moments = _Features(self.teacher(kernel, SEARCHED)), Moments()
        self.add(moments, features, self.sample)
        return choose(moments, self.targets, "motion")

    def add(self, moments: Moments, features: _Features, part: LabelledChunks) -> None:
        moved = motion_targets(part.motion.numpy())
        y = torch.cat(
            [self.motion(part.motion), *(torch.from_numpy(moved[name]).float() for name in ("wrist", "finger"))], 1
        )
        moments.add(features(part.cells, part.hand), y, part.domain, part.fold)

    def teacher(self, kernel: Kernel, landmarks: int) -> InverseDynamics:
        """With its landmarks, and no weights yet."""
        chosen = self.order[:landmarks]
        inputs = PairInputs(self.inputs.sight, *self.inputs.channels.shape)
        inputs.load_state_dict(self.inputs.state_dict())
        inputs.weights.copy_(torch.tensor(kernel.weights))
        made = InverseDynamics(inputs, self.motion, len(chosen))
        made.landmarks.copy_(inputs.read(self.sample.cells[chosen]))
        made.landmark_hand.copy_(self.sample.hand[chosen])
        made.other_hand.fill_(kernel.other_hand)
        some = made.landmarks[:SEARCHED]
        distances = torch.cdist(some, some)
        made.bandwidth.copy_(kernel.bandwidth * distances[distances > 0].median().clamp(min=1e-6))
        return made


class _Features:
    """Pairs as points in which the kernel is an inner product: their likeness to the landmarks, uncorrelated."""

    def __init__(self, teacher: InverseDynamics) -> None:
        self.teacher = teacher
        own = self._alike(teacher.landmarks, teacher.landmark_hand).double()
        values, vectors = torch.linalg.eigh((own + own.T) / 2)
        kept = values > ROUNDING * values[-1]
        self.roots = vectors[:, kept] / values[kept].sqrt()

    def _alike(self, x: Tensor, hand: Tensor) -> Tensor:
        return self.teacher.kernel(x) * self.teacher.hands()[hand]

    def __call__(self, cells: Tensor, hand: Tensor) -> Tensor:
        """Pooled features (E, 2, cells, Dv) and hands (E,) -> (E, at most M)."""
        return self._alike(self.teacher.inputs.read(cells), hand) @ self.roots.float()

    def settle(self, solution: Tensor) -> None:
        """Give the teacher the weights of a solution (at most M + 1, T), whose first targets are its directions."""
        directions = self.teacher.weights.shape[1]
        self.teacher.bias.copy_(solution[0, :directions])
        self.teacher.weights.copy_(self.roots @ solution[1:, :directions])
