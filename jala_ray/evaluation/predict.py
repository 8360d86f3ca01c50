"""Rows of a manifest -> records: what each model generates, the truth, the tokenizer's floor and two trivial baselines (method.md 8)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from jala_ray.data.manifest.table import Manifest
from jala_ray.data.samples.assets import tokenizer_key
from jala_ray.data.samples.chunks import rows_with_labels
from jala_ray.data.samples.source import Pictures, Sample
from jala_ray.data.sampling.catalogue import equals
from jala_ray.evaluation.asking import Asker
from jala_ray.evaluation.records import ClipRecord, HandRecord
from jala_ray.generation import Generator, Motion
from jala_ray.generation.motion import joints_of, mean_motion
from jala_ray.generation.prompt import Prompt, prompt_of
from jala_ray.hands.features import pose_to_features
from jala_ray.hands.mano import load_pair
from jala_ray.hands.resample import chunk_features, model_times, resample_track
from jala_ray.hands.rotations import axis_angle_to_matrix
from jala_ray.storage import StorageOptions
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.types import CHUNK_FRAMES, FEATURE_DIM, Clip, Hand, HandState, ManifestError, Split

FLOOR, HOLD_FIRST, MEAN_MOTION = "floor", "hold_first", "mean_motion"
Task = Literal["generation", "continuation", "description"]
"""Every clip is generated from its first frame and instruction, or continued from the first half of its time steps; or its motion is
described (`describe.py`)."""


def rows_to_evaluate(manifest: Manifest, split: Split, samples: int | None, seed: int = 0) -> np.ndarray:
    """Rows of a split with a video and a labelled chunk, each clip once; at most `samples` a domain, a keyed random part of them.

    Raises `ManifestError` when there are none.
    """
    keep = labelled_rows(manifest, split)
    keep = keep[np.sort(np.unique(_clip_ids(manifest)[keep], return_index=True)[1])]
    if not len(keep):
        remedy = "Generation is scored against labels: see `jala inspect`."
        raise ManifestError(f"rows of split {split} in {manifest.path}", 0, "at least one labelled clip", remedy)
    if samples is None:
        return keep
    return np.sort(np.concatenate([lot[:samples] for lot in by_lot(manifest, keep, seed)]))


def labelled_rows(manifest: Manifest, split: Split) -> np.ndarray:
    """Rows of a split with a video and a labelled chunk, ascending."""
    index = manifest.index
    labelled = np.array([any(left) or any(right) for left, right in _flags(manifest)])
    return np.flatnonzero(equals(index["split"], split) & index["has_video"].to_numpy() & labelled)


def by_lot(manifest: Manifest, rows: np.ndarray, seed: int = 0) -> list[np.ndarray]:
    """The rows of each domain, in a keyed random order."""
    domains = np.array(manifest.index["domain"].to_pylist())[rows]
    return [
        np.random.default_rng((seed, number)).permutation(rows[domains == domain])
        for number, domain in enumerate(np.unique(domains))
    ]


def _clip_ids(manifest: Manifest) -> np.ndarray:
    return np.array(manifest.index["clip_id"].to_pylist(), object).astype(str)


def _flags(manifest: Manifest) -> Iterator[tuple[list[bool], list[bool]]]:
    index = manifest.index
    return zip(index["left_labelled"].to_pylist(), index["right_labelled"].to_pylist(), strict=True)


# --- truth and trivial rows ------------------------------------------------------------------------------------------


def true_features(clip: Clip, hand: Hand) -> tuple[np.ndarray, np.ndarray]:
    """Features (T, 99) float32 of a labelled hand at the model frames, and valid (T,)."""
    times = model_times(clip.n_chunks) * clip.time_scale
    theta, rot, wrist, valid = resample_track(clip.hands[hand], clip.pose_time_s, times)
    matrices = axis_angle_to_matrix(torch.from_numpy(np.concatenate([rot[:, None], theta], 1)))
    return pose_to_features(matrices[:, 1:], matrices[:, 0], torch.from_numpy(wrist), hand).numpy(), valid


def floor_of(label: str) -> str:
    """The row of the floor of a model that has another tokenizer than the first one."""
    return f"{FLOOR} of {label}"


def floor_features(tokenizer: MotionTokenizer, features: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """What remains of features (T, 99) after tokenising; chunks that are not `labelled` (N,) stay as they are."""
    out = features.reshape(-1, CHUNK_FRAMES, FEATURE_DIM).copy()
    if labelled.any():
        chunks = torch.from_numpy(out[labelled])
        out[labelled] = tokenizer.decode(tokenizer.encode(chunks)).numpy()
    return out.reshape(-1, FEATURE_DIM)


@dataclass(frozen=True)
class MeanMotion:
    """The mean of the training split's labelled motion, frame by frame of a clip."""

    features: tuple[np.ndarray, np.ndarray]
    """(T, 99) for each hand; T = 0 for one without labels."""

    @classmethod
    def of(cls, manifest: Manifest, max_chunks: int = 2000, seed: int = 0) -> MeanMotion:
        """Over a keyed random part of the training rows; damaged ones are printed and passed over."""
        stacks: tuple[list[list[np.ndarray]], ...] = ([], [])
        for row in rows_with_labels((manifest.path,), "train", max_chunks, seed, manifest.options):
            try:
                motion, labelled = chunk_features(manifest.clip(row.index))
            except ManifestError as error:
                print(f"passed over: {error}", file=sys.stderr)
                continue
            for hand in Hand:
                for time in np.flatnonzero(labelled[hand]):
                    while len(stacks[hand]) <= time:
                        stacks[hand].append([])
                    stacks[hand][time].append(motion[hand, time])
        left, right = (cls._mean(stack) for stack in stacks)
        return cls((left, right))

    @staticmethod
    def _mean(stack: list[list[np.ndarray]]) -> np.ndarray:
        """Up to the first chunk that no clip has."""
        known = next((i for i, chunks in enumerate(stack) if not chunks), len(stack))
        means = [mean_motion(torch.from_numpy(np.stack(chunks))).numpy() for chunks in stack[:known]]
        return np.concatenate(means) if means else np.zeros((0, FEATURE_DIM), np.float32)

    def over(self, hand: Hand, frames: int) -> np.ndarray | None:
        """(frames, 99), its last frame held where the training clips end; None for a hand without labels."""
        mine = self.features[hand]
        return mine[np.minimum(np.arange(frames), len(mine) - 1)] if len(mine) else None


# --- records ---------------------------------------------------------------------------------------------------------


@dataclass
class Predictor(Asker[Prompt, Motion]):
    """Evaluates rows of a manifest for several models at once, so that all see the same clips."""

    manifest: Manifest
    models: Mapping[str, Generator]
    """By the label of their row."""
    mean: MeanMotion
    task: Task = "generation"
    batch: int = 8
    options: StorageOptions | None = None

    def __post_init__(self) -> None:
        self._hands = load_pair()
        self._keys = {label: tokenizer_key(model.assets) for label, model in self.models.items()}

    def _floor(self, label: str) -> str:
        """Models of the first one's tokenizer share a floor."""
        return FLOOR if self._keys[label] == next(iter(self._keys.values())) else floor_of(label)

    def prompt(self, sample: Sample, pictures: Pictures) -> Prompt:
        given = sample.labelled.shape[1] // 2 if self.task == "continuation" else 0
        return prompt_of(sample, pictures, given)

    def answers(self, model: Generator, prompts: Sequence[Prompt]) -> list[Motion]:
        return model.batch(prompts)

    def record(self, facts: Mapping[str, Any], sample: Sample, answers: Mapping[str, Motion]) -> ClipRecord:
        clip = sample.clip
        assert clip is not None
        hands = [
            self._hand(clip, hand, answers, sample.labelled[hand])
            for hand in Hand
            if clip.hands[hand].state is HandState.LABELLED
        ]
        return ClipRecord(**{**facts, "hands": tuple(h for h in hands if h.valid.any())})

    def _hand(self, clip: Clip, hand: Hand, motions: Mapping[str, Motion], labelled: np.ndarray) -> HandRecord:
        features, valid = true_features(clip, hand)
        if not valid.any():
            return HandRecord(hand, valid, np.zeros((len(valid), 21, 3), np.float32), {})
        predicted = {label: motion.features[hand] for label, motion in motions.items()}
        for label, model in self.models.items():
            if (name := self._floor(label)) not in predicted:
                predicted[name] = floor_features(model.motion, features, labelled)
        first = features[np.flatnonzero(valid)[0]]
        predicted[HOLD_FIRST] = np.broadcast_to(first, features.shape)
        mean = self.mean.over(hand, len(features))
        if mean is not None:
            predicted[MEAN_MOTION] = mean
        beta = clip.hands[hand].beta
        joints = {name: joints_of(motion, hand, beta, self._hands[hand]) for name, motion in predicted.items()}
        true = joints_of(np.where(valid[:, None], features, first), hand, beta, self._hands[hand])
        scored = valid.copy()
        if self.task == "continuation":
            scored[: clip.n_chunks // 2 * CHUNK_FRAMES] = False
        return HandRecord(hand, scored, np.where(valid[:, None, None], true, 0.0).astype(np.float32), joints)
