"""What pairs of frames can teach in this world, told by kernels and by a perceiver alone, in seconds and before any run (gates G1 to G3).

All is fitted on the labels that the study's runs have, and asked of the final clips. Motion is what the tokenizer makes of a chunk's codes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor, nn

from jala_ray.config import DataConfig, RunConfig
from jala_ray.data.cache.part import encode
from jala_ray.data.manifest.table import Manifest, batched
from jala_ray.data.samples.assets import Assets
from jala_ray.data.samples.source import Look, ManifestSource, Sample
from jala_ray.data.sampling.catalogue import catalogue
from jala_ray.data.sampling.plan import plan_rows
from jala_ray.data.synthetic import plan_world
from jala_ray.hands.displacement import motion_targets
from jala_ray.models.frame_encoder import FrameEncoder
from jala_ray.models.inverse_dynamics import InverseDynamics, PairSight
from jala_ray.models.perceiver import Perceiver
from jala_ray.presets import VARIANTS
from jala_ray.studies.alignment.stages import StudyFolder
from jala_ray.studies.alignment.world import PARTS, part_of
from jala_ray.training.build import build_assets
from jala_ray.training.device import best_device
from jala_ray.training.optim import build_optimizer, clip_gradients, lr_factor, set_lr
from jala_ray.training.teacher.fit import fit
from jala_ray.training.teacher.labelled import LabelledChunks, Origin
from jala_ray.training.teacher.moments import FOLDS
from jala_ray.types import WRIST_DIM, Split

ROWS = 64
"""Read at once."""
BANDWIDTHS, PENALTIES = (0.5, 1.0, 2.0), (1e-3, 1e-2, 1e-1, 1.0)
"""Of the policy: times the median distance, and of its ridge."""
BATCH = 16
"""Labelled hand-chunks of a step of a perceiver trained directly: about as many as a run's step has."""


@dataclass
class KnownChunks:
    """Labelled hand-chunks (E), and all that is asked of them."""

    pairs: Tensor
    """(E, 2, P, Dv) features of v_t and v_{t+delta}."""
    first: Tensor
    """(E, P, Dv) of v_0."""
    motion: Tensor
    """(E, 15, 99)."""
    hand: Tensor
    time: Tensor
    domain: np.ndarray
    source: np.ndarray
    clip: np.ndarray
    words: np.ndarray
    """(E,) of str: all instructions of the clip."""

    def __len__(self) -> int:
        return len(self.hand)

    def take(self, chosen: np.ndarray) -> KnownChunks:
        """Some, by a mask (E,)."""
        place = torch.from_numpy(np.flatnonzero(chosen))
        held: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen_of: dict[str, Any] = {
            name: value[place] if isinstance(value, Tensor) else value[place.numpy()] for name, value in held.items()
        }
        return KnownChunks(**chosen_of)

    def chunks(self, sight: PairSight) -> LabelledChunks:
        """A clip of the world is a video of its own."""
        told = zip(self.domain, self.source, self.clip, self.time.tolist(), strict=True)
        origin = [Origin(domain, source, clip, clip, 0, time) for domain, source, clip, time in told]
        return LabelledChunks(sight.pooled(self.pairs), self.motion, self.hand, origin)


def read(assets: Assets, encoder: FrameEncoder, manifest: Manifest, split: Split) -> KnownChunks:
    """Of all labelled clips of a split. Every clip of a made world can be read."""
    found = catalogue(manifest, DataConfig(labels="labelled_only"), split)
    source = ManifestSource(manifest.base, assets)
    groups = batched(plan_rows(found.place, found.files, 0, range(len(found))), ROWS)
    parts = [list(_read(assets, encoder, source, group)) for group in groups]
    columns = zip(*[one for part in parts for one in part], strict=True)
    joined: Any = [torch.cat(c) if isinstance(c[0], Tensor) else np.concatenate(c) for c in columns]
    return KnownChunks(*joined)


def _read(
    assets: Assets, encoder: FrameEncoder, source: ManifestSource, rows: Sequence[Any]
) -> Iterator[tuple[Any, ...]]:
    samples = [sample for sample in source.samples(rows) if isinstance(sample, Sample)]
    looks = [Look(s, range(s.labelled.shape[1] + 1), range(s.labelled.shape[1])) for s in samples]
    for sample, pictures in zip(samples, source.pictures(looks), strict=True):
        assert isinstance(pictures, dict) and sample.clip is not None
        units = torch.from_numpy(encode(encoder, [pictures["frames"]], np.dtype(np.float32))[0])
        times, hands = np.nonzero(sample.labelled.T)
        with torch.no_grad():
            motion = assets.tokenizer.decode(torch.from_numpy(sample.codes[hands, times]))
        pairs, count = torch.stack([units[times], units[times + 1]], 1), len(times)
        told = (sample.clip.domain, sample.clip.source, sample.clip_id, " ".join(sample.instructions).lower())
        first = units[:1].expand(count, -1, -1)
        places = (torch.from_numpy(hands), torch.from_numpy(times))
        yield pairs, first, motion, *places, *(np.full(count, word, object) for word in told)


@dataclass
class Classroom:
    """The chunks of a study, and the teacher that its runs have."""

    config: RunConfig
    assets: Assets
    known: KnownChunks
    """Labelled in the study's manifest."""
    unlabelled: KnownChunks
    """Of unlabelled Wild, with labels that only the twin has. Which hand acts is known of them, as a detector knows it."""
    asked: KnownChunks
    """Of the final clips."""
    teacher: InverseDynamics
    report: dict[str, Any]

    @classmethod
    def of(cls, study: StudyFolder) -> Classroom:
        config = study.base()
        encoder = FrameEncoder.build(config.model.encoder).to(best_device()).eval()
        with tempfile.TemporaryDirectory() as scratch:
            assets = build_assets(config, scratch)
        train = read(assets, encoder, Manifest(study.twin), "train")
        asked = read(assets, encoder, Manifest(study.final), "val")
        labelled = {plan.clip_id for plan in plan_world(study.size.world) if plan.labelled}
        own = np.array([clip in labelled for clip in train.clip])
        known, unlabelled = train.take(own), train.take(~own)
        settings = VARIANTS["grounded"](config).objective.taught
        assert settings is not None
        sight = PairSight(encoder.grid, settings.cells, encoder.pairs)
        found = fit(settings, known.chunks(sight), None, sight)
        return cls(config, assets, known, unlabelled, asked, found.teacher, found.report.plain())

    def motion(self, seen: KnownChunks) -> Tensor:
        """(E, R) of the true motion."""
        return self.teacher.motion(seen.motion)

    def taught(self, seen: KnownChunks) -> Tensor:
        """(E, R) that the teacher reads from the pairs."""
        return self.teacher(seen.pairs)[torch.arange(len(seen)), seen.hand]

    def mean_motion(self, seen: KnownChunks) -> Tensor:
        """(E, R) the mean of each hand's labels."""
        own = self.motion(self.known)
        return torch.stack([own[self.known.hand == hand].mean(0) for hand in (0, 1)])[seen.hand]

    def wrist_cm(self, seen: KnownChunks, directions: Tensor) -> np.ndarray:
        """(E,) mean distance of the wrist from where it was, over the chunk's frames."""
        told = self.teacher.motion.back(directions)
        distance = (told - seen.motion)[..., WRIST_DIM - 3 : WRIST_DIM].norm(dim=-1)
        return 100 * distance.mean(1).numpy()


def inverse_dynamics(room: Classroom) -> dict[str, Any]:
    """G1: R2 of the final clips' motion by the teacher, a part; of all directions, and of the wrist's displacement."""
    told, true = room.taught(room.asked), room.motion(room.asked)
    moved, was = (motion_targets(m.numpy())["wrist"] for m in (room.teacher.motion.back(told), room.asked.motion))
    found = {}
    for name, chosen in (*_parts(room.asked).items(), ("wild", room.asked.domain == "wild")):
        y = {"motion": (told[chosen].numpy(), true[chosen].numpy()), "wrist": (moved[chosen], was[chosen])}
        found[name] = {subject: round(_r2(*pair), 4) for subject, pair in y.items()} | {"chunks": int(chosen.sum())}
    return found


def _r2(told: np.ndarray, true: np.ndarray) -> float:
    return float(1 - np.square(told - true).sum() / np.square(true - true.mean(0)).sum())


def _parts(seen: KnownChunks) -> dict[str, np.ndarray]:
    return {part: part_of(seen.domain.tolist(), seen.source.tolist(), part) for part in PARTS}


# --- the policy --------------------------------------------------------------------------------------------------------


class RidgePolicy:
    """Motion from instruction, first frame, hand and time: kernel ridge, its bandwidth and penalty by clips that are left out."""

    def __init__(self, room: Classroom) -> None:
        self.room = room
        spoken = sorted({word for text in (*room.known.words, *room.unlabelled.words) for word in text.split()})
        self.vocabulary = {word: place for place, word in enumerate(spoken)}
        inputs = room.teacher.inputs
        with torch.no_grad():
            self.scenes = lambda seen: (inputs.sight.means(seen.first) - inputs.mean) @ inputs.channels

    def inputs(self, seen: KnownChunks) -> np.ndarray:
        """(E, D): words (a set), v_0, hand and time, of about the same weight each."""
        words = np.zeros((len(seen), len(self.vocabulary)))
        for row, text in enumerate(seen.words):
            words[row, [self.vocabulary[w] for w in set(text.split()) if w in self.vocabulary]] = 1.0
        words /= np.linalg.norm(words, axis=1, keepdims=True).clip(min=1e-9)
        scene = self.scenes(seen).flatten(1).numpy()
        place = np.stack([seen.hand.numpy() - 0.5, seen.time.numpy() / 3.0], axis=1)
        return np.concatenate([words, scene / np.sqrt(scene.shape[1] / 4), place], axis=1)

    def errors(self, seen: Sequence[KnownChunks], motion: Sequence[Tensor]) -> np.ndarray:
        """(E,) of the asked chunks, in cm of the wrist, of a policy fitted on chunks with this motion (E, R)."""
        x = np.concatenate([self.inputs(one) for one in seen])
        y = torch.cat(list(motion)).double().numpy()
        clips = np.unique(np.concatenate([one.clip for one in seen]), return_inverse=True)[1]
        fold = clips % FOLDS
        gamma, penalty = self._chosen(x, y, fold)
        told = _ridge(gamma, penalty).fit(x, y - y.mean(0)).predict(self.inputs(self.room.asked))
        return self.room.wrist_cm(self.room.asked, torch.from_numpy(told + y.mean(0)).float())

    def _chosen(self, x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> tuple[float, float]:
        some = np.random.default_rng(0).permutation(len(x))[:500]
        median = np.median([np.linalg.norm(x[i] - x[some], axis=1) for i in some])
        lost: dict[tuple[float, float], float] = {}
        for factor in BANDWIDTHS:
            gamma = 1 / (2 * (factor * median) ** 2)
            for penalty in PENALTIES:
                ridge, total = _ridge(gamma, penalty), 0.0
                for number in np.unique(fold):
                    seen = fold != number
                    mean = y[seen].mean(0)
                    told = ridge.fit(x[seen], y[seen] - mean).predict(x[~seen]) + mean
                    total += float(np.square(told - y[~seen]).sum())
                lost[gamma, penalty] = total
        return min(lost, key=lambda key: lost[key])


def _ridge(gamma: float, penalty: float) -> Any:
    made: Any = KernelRidge
    return made(alpha=penalty, kernel="rbf", gamma=gamma)


def pseudo_labels(room: Classroom) -> dict[str, Any]:
    """G2: wrist errors in cm, a part, of a policy from labels, from labels and what the teacher reads of unlabelled pairs, from all labels;
    and which share of the gap between the first and the last the second closes."""
    policy, known, others = RidgePolicy(room), room.known, room.unlabelled
    own = room.motion(known)
    errors = {
        "labels": policy.errors([known], [own]),
        "and pseudo-labels": policy.errors([known, others], [own, room.taught(others)]),
        "all labels": policy.errors([known, others], [own, room.motion(others)]),
        "the teacher": room.wrist_cm(room.asked, room.taught(room.asked)),
        "mean motion": room.wrist_cm(room.asked, room.mean_motion(room.asked)),
    }
    found: dict[str, Any] = {}
    for part, chosen in _parts(room.asked).items():
        means = {name: float(error[chosen].mean()) for name, error in errors.items()}
        gap = means["labels"] - means["all labels"]
        closed = (means["labels"] - means["and pseudo-labels"]) / gap if gap > 0 else 0.0
        found[part] = {name: round(value, 3) for name, value in means.items()} | {"gap closed": round(closed, 4)}
    return found


# --- a perceiver trained directly -----------------------------------------------------------------------------------------


class PerceiverReadout(nn.Module):
    """A perceiver, and the motion of each hand from the mean of its latents."""

    def __init__(self, perceiver: Perceiver, width: int, directions: int) -> None:
        super().__init__()
        self.perceiver, self.out = perceiver, nn.Linear(width, directions)

    def forward(self, pairs: Tensor, hand: Tensor) -> Tensor:
        """(E, 2, P, Dv) and (E,) -> (E, R)."""
        return self.out(self.perceiver(pairs)[torch.arange(len(pairs)), hand].mean(1))


def perceivers(room: Classroom) -> dict[str, Any]:
    """G3: wrist errors in cm on final Wild clips of LAP's perceiver, trained on the labels alone for a run's steps, in both its forms."""
    wild = room.asked.domain == "wild"
    asked = room.asked.take(wild)
    found = {"mean motion": float(room.wrist_cm(asked, room.mean_motion(asked)).mean())}
    for reads in ("frames", "change"):
        found[reads] = float(room.wrist_cm(asked, _trained(room, reads)(asked)).mean())
    return {name: round(value, 3) for name, value in found.items()}


def _trained(room: Classroom, reads: Any) -> Any:
    config, known, y = room.config, room.known, room.motion(room.known)
    sizes = config.objective.perceivers
    assert sizes is not None
    torch.manual_seed(config.seed)
    width, directions = config.model.backbone.language.hidden, y.shape[1]
    made = (replace(sizes, reads=reads), room.assets.spec.vocab.chunk_tokens, known.pairs.shape[-1])
    model = PerceiverReadout(Perceiver(*made, room.teacher.inputs.sight.grid, width), width, directions)
    optimizer, steps = build_optimizer(model, config.optim), config.train.steps or 0
    rng = np.random.default_rng(config.seed)
    for step in range(steps):
        chosen = torch.from_numpy(rng.integers(len(known), size=BATCH))
        set_lr(optimizer, config.optim.lr * lr_factor(step, steps, config.optim.warmup))
        loss = (model(known.pairs[chosen], known.hand[chosen]) - y[chosen]).square().sum(-1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(model, config.optim.clip)
        optimizer.step()
    model.eval().requires_grad_(False)
    return lambda seen: model(seen.pairs, seen.hand)
