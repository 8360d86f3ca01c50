"""From labelled chunks to an inverse-dynamics teacher: what it reads, how near pairs must be, and how much it is smoothed are chosen by
held-out clips (docs/method.md 5, Grounded).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jala_ray.config import TeacherConfig
from jala_ray.hands.displacement import motion_targets
from jala_ray.models.inverse_dynamics import InverseDynamics, MotionDirections, PairInputs, PairSight, Teacher
from jala_ray.training.teacher.labelled import HeldBy, LabelledChunks, Origin, folds, held_by
from jala_ray.training.teacher.moments import Chosen, Moments, choose, solve, without_each
from jala_ray.types import HAND_NAMES, UserError

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
ROUNDING = 1e-6
"""Directions of the landmarks' kernel with less than this share of the largest are rounding: likenesses are in float32."""
TOGETHER = 4096
"""Chunks that are added up at once."""
MEASURED = 512
"""Landmarks whose distances give the bandwidth."""
SHOWN = 400
"""Held-out chunks that are told one by one."""


@dataclass(frozen=True)
class Kernel:
    """What is chosen of a teacher beside its smoothing."""

    weights: tuple[float, float, float]
    bandwidth: float
    other_hand: float


@dataclass
class Report:
    """What a fit says of itself; `r2` and `reads` are of what was held out."""

    chunks: dict[str, int]
    clips: dict[str, int]
    held_by: HeldBy
    """What was held out at once."""
    r2: dict[str, dict[str, float]]
    """Domain -> `motion` (all directions), `wrist` and `finger` (displacement within the chunk)."""
    reads: dict[str, dict[str, dict[str, float]]]
    """`motion` on the sample, by a fit on fewer landmarks: from `all`, and from less, so that it is seen what tells it."""
    kernel: dict[str, Any]
    penalty: float
    balance: float
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))


@dataclass
class Fitted:
    teacher: InverseDynamics
    report: Report
    held_out: list[dict[str, Any]]

    def kept(self, sight: PairSight, **beside: Any) -> Teacher:
        """As runs keep it, on the CPU; `beside`: what else its report holds."""
        tensors = {name: tensor.detach().cpu() for name, tensor in self.teacher.state_dict().items()}
        return Teacher(tensors, sight, self.report.plain() | beside, self.held_out)


def fit(
    config: TeacherConfig,
    sample: LabelledChunks | None,
    every: Callable[[], Iterable[LabelledChunks]] | None,
    sight: PairSight,
) -> Fitted:
    """`sample`: at most `SAMPLE` chunks; `every`: streams all of them, or None where the sample is all. Raises `UserError` for too few."""
    if sample is None or len(sample) < FEWEST:
        found, expected = 0 if sample is None else len(sample), f"at least {FEWEST}, to fit the teacher"
        remedy = "Label more clips, or train with a preset that needs no teacher (jala, no_align)."
        raise UserError("labelled hand-chunks", found, expected, remedy)
    began = time.monotonic()
    bench = _Bench.of(config, sample, sight)
    kernel, all_told = bench.search()
    reads = {name: bench.tried(replace(kernel, weights=weights)) for name, weights in ABLATIONS.items()}
    teacher = bench.teacher(kernel, config.landmarks)
    features = _Features(teacher)
    moments, clips = bench.added(features, [bench.sample] if every is None else map(bench.read, every()))
    found = choose(moments, bench.targets, "motion")
    features.settle(solve(moments.mixed(found.balance), found.penalty))
    report = Report(
        {domain: moments.count(domain) for domain in moments.domains},
        dict(sorted(clips.items())),
        bench.held_by,
        _plain(found.r2),
        {name: _plain(tried.r2) for name, tried in {"all": all_told, **reads}.items()},
        dataclasses.asdict(kernel),
        found.penalty,
        found.balance,
    )
    shown = held_out(bench, features, without_each(moments, found))
    report.seconds = round(time.monotonic() - began, 1)
    return Fitted(teacher, report, shown)


def held_out(bench: _Bench, features: _Features, solutions: Sequence[Tensor]) -> list[dict[str, Any]]:
    """`SHOWN` chunks of the sample, domains in turn: where the wrist goes within the chunk (cm), and where the fit without the chunk's
    fold says.
    """
    chosen = bench.sample.take(bench.order[:SHOWN])
    x, end = features(chosen.projected, chosen.hand).double(), bench.targets["wrist"].stop
    rows = []
    for i, origin in enumerate(chosen.origin):
        solution = solutions[int(chosen.fold[i])]
        told = (solution[0] + x[i] @ solution[1:])[end - 3 : end]
        places = {"true_cm": chosen.targets[i, end - 3 : end], "told_cm": told}
        shown = {name: [round(float(100 * value), 2) for value in values] for name, values in places.items()}
        rows.append({**origin._asdict(), "hand": HAND_NAMES[int(chosen.hand[i])], **shown})
    return rows


def _plain(r2: Any) -> dict[str, dict[str, float]]:
    return {domain: {name: round(value, 4) for name, value in found.items()} for domain, found in r2.items()}


def _even(domain: Sequence[str]) -> Tensor:
    """(E,) float64 with sum 1: every domain has the same part."""
    names, place, counts = np.unique(np.array(domain), return_inverse=True, return_counts=True)
    return torch.from_numpy(1.0 / (len(names) * counts[place]))


@dataclass
class _Read:
    """Labelled chunks (E) as a regression takes them."""

    projected: Tensor
    """(E, 2, cells, channels)."""
    hand: Tensor
    targets: Tensor
    """(E, T) float32: directions of motion, wrist, fingers."""
    fold: Tensor
    origin: list[Origin]

    def take(self, chosen: Tensor) -> _Read:
        origin = [self.origin[i] for i in chosen.tolist()]
        return _Read(self.projected[chosen], self.hand[chosen], self.targets[chosen], self.fold[chosen], origin)


@dataclass
class _Bench:
    """A sample on which choices are compared."""

    inputs: PairInputs
    motion: MotionDirections
    held_by: HeldBy
    sample: _Read
    order: Tensor
    """(E,) places in the sample, in the order in which they become landmarks: domains in turn."""
    targets: dict[str, slice]

    @classmethod
    def of(cls, config: TeacherConfig, sample: LabelledChunks, sight: PairSight) -> _Bench:
        width, share, domain = sample.cells.shape[-1], _even(sample.domain), sample.domain
        inputs = PairInputs(sight, width, min(config.channels, width))
        inputs.fit(sample.cells, share)
        motion = MotionDirections(config.directions)
        motion.fit(sample.motion, share)
        draw = torch.from_numpy(np.random.default_rng(0).permutation(len(sample)))
        within, turn = dict[str, int](), torch.zeros(len(sample))
        for place in draw.tolist():
            name = domain[place]
            turn[place] = within[name] = within.get(name, -1) + 1
        order = draw[turn[draw].argsort(stable=True)]
        sizes = {"motion": config.directions, "wrist": 15, "finger": 90}
        ends = np.cumsum([0, *sizes.values()]).tolist()
        targets = {name: slice(a, b) for name, a, b in zip(sizes, ends[:-1], ends[1:], strict=True)}
        by = held_by(sample.origin)
        return cls(inputs, motion, by, _read(sample, inputs, motion, by), order, targets)

    def read(self, part: LabelledChunks) -> _Read:
        return _read(part, self.inputs, self.motion, self.held_by)

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
        """By the motion alone: displacements are asked for once, in the end."""
        features, motion = _Features(self.teacher(kernel, SEARCHED)), self.targets["motion"]
        told = replace(self.sample, targets=self.sample.targets[:, motion])
        return choose(self.added(features, [told])[0], {"motion": motion}, "motion")

    def added(self, features: _Features, reads: Iterable[_Read]) -> tuple[Moments, dict[str, int]]:
        """Sums of some chunks, and their clips a domain: a clip's chunks come together."""
        moments, clips = Moments(), dict[str, int]()
        for parts in _gathered(reads):
            x = torch.cat([features(part.projected, part.hand) for part in parts])
            y, fold = (torch.cat([getattr(part, name) for part in parts]) for name in ("targets", "fold"))
            origins = [origin for part in parts for origin in part.origin]
            moments.add(x, y, [origin.domain for origin in origins], fold)
            for domain, _ in {(origin.domain, origin.clip) for origin in origins}:
                clips[domain] = clips.get(domain, 0) + 1
        return moments, clips

    def teacher(self, kernel: Kernel, landmarks: int) -> InverseDynamics:
        """With its landmarks, and no weights yet."""
        chosen = self.order[:landmarks]
        inputs = PairInputs(self.inputs.sight, *self.inputs.channels.shape)
        inputs.load_state_dict(self.inputs.state_dict())
        inputs.weights.copy_(torch.tensor(kernel.weights))
        made = InverseDynamics(inputs, self.motion, len(chosen))
        made.landmarks.copy_(inputs.weighed(self.sample.projected[chosen]))
        made.landmark_hand.copy_(self.sample.hand[chosen])
        made.other_hand.fill_(kernel.other_hand)
        made.bandwidth.fill_(kernel.bandwidth * _typical_distance(made.landmarks[:MEASURED]))
        return made


def _read(part: LabelledChunks, inputs: PairInputs, motion: MotionDirections, by: HeldBy) -> _Read:
    moved = motion_targets(part.motion.numpy())
    displaced = (torch.from_numpy(moved[name]).float() for name in ("wrist", "finger"))
    projected = torch.cat([inputs.project(cells) for cells in part.cells.split(TOGETHER // 8)])
    targets = torch.cat([motion(part.motion), *displaced], dim=1)
    return _Read(projected, part.hand, targets, folds(part.origin, by), part.origin)


def _gathered(reads: Iterable[_Read]) -> Iterator[list[_Read]]:
    """Parts that have `TOGETHER` chunks or more together; the last ones fewer."""
    held, count = list[_Read](), 0
    for part in reads:
        held.append(part)
        count += len(part.origin)
        if count >= TOGETHER:
            yield held
            held, count = [], 0
    if held:
        yield held


def _typical_distance(points: Tensor) -> float:
    """Median distance of two of (M, size) that differ; 1 where none do. Not by products, to which equal points are not equal."""
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    apart = distances[distances > 0]
    return float(apart.median()) if len(apart) else 1.0


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

    def __call__(self, projected: Tensor, hand: Tensor) -> Tensor:
        """Principal channels (E, 2, cells, channels) and hands (E,) -> (E, at most M)."""
        return self._alike(self.teacher.inputs.weighed(projected), hand) @ self.roots.float()

    def settle(self, solution: Tensor) -> None:
        """Give the teacher the weights of a solution (at most M + 1, T), whose first targets are its directions."""
        directions = self.teacher.weights.shape[1]
        self.teacher.bias.copy_(solution[0, :directions])
        self.teacher.weights.copy_(self.roots @ solution[1:, :directions])
