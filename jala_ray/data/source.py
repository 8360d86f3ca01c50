"""Where samples come from: a manifest with videos, or a features file (`features.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from jala_ray.types import Clip, HandState, TaskType, UserError

if TYPE_CHECKING:
    from jala_ray.data.assets import Assets
    from jala_ray.data.manifest import Manifest


@dataclass
class Example:
    """A manifest row without its pictures: what drawing and laying out need."""

    clip_id: str
    task: TaskType
    states: tuple[HandState, HandState]
    labelled: np.ndarray
    """(2, N) bool: hand-chunks with motion codes."""
    codes: np.ndarray
    """(2, N, K) int64 motion ids, 0 where not labelled."""
    instructions: Sequence[str]
    description: str
    seconds: float
    """N seconds of model time."""


@dataclass
class Visuals:
    """Pictures of one sample; the arrays of `collate.Laid`."""

    image: np.ndarray
    frames: np.ndarray | None = None
    features: np.ndarray | None = None
    pair_features: np.ndarray | None = None


class Source(Protocol):
    """Random access to examples. Bad rows come back as the `UserError` that says why, never as an exception."""

    def examples(self, rows: Sequence[int]) -> list[Example | UserError]: ...

    def visuals(self, row: int, boundaries: Sequence[int], pairs: Sequence[int]) -> Visuals:
        """v_0 for the backbone; the encoder's frames or features of `boundaries`, or of (v_0, v_0) and `pairs`."""
        ...

    def blank(self) -> Visuals:
        """Black pictures of one boundary, for padding samples."""
        ...


class ManifestSource:
    """Clips of a manifest: motion tokenised, boundary frames decoded when asked for."""

    def __init__(self, manifest: Manifest, assets: Assets) -> None:
        self.manifest, self.assets = manifest, assets
        self._clips: dict[int, Clip] = {}

    def examples(self, rows: Sequence[int]) -> list[Example | UserError]:
        from jala_ray.hands.resample import chunk_features

        self._clips = dict(zip(rows, self.manifest.take(rows), strict=True))
        found: list[Example | UserError] = []
        chunks: list[np.ndarray] = []
        for row in rows:
            try:
                clip = self._clips[row]
                features, labelled = chunk_features(clip)
                if not labelled.shape[1]:
                    raise UserError("clip", clip.clip_id, "at least one second of model time")
                chunks.append(features[labelled])
                codes = np.zeros((*labelled.shape, self.assets.motion.K), np.int64)
                states = (clip.hands[0].state, clip.hands[1].state)
                example = Example(
                    *(clip.clip_id, clip.task_type, states, labelled, codes),
                    *(clip.instructions, clip.description, float(labelled.shape[1])),
                )
                found.append(example)
            except UserError as error:
                found.append(error)
        self._tokenise([e for e in found if isinstance(e, Example)], chunks)
        return found

    def _tokenise(self, examples: list[Example], chunks: list[np.ndarray]) -> None:
        """One call of the motion tokenizer for all labelled chunks of a step's share."""
        if not sum(map(len, chunks)):
            return
        codes = self.assets.motion.encode(torch.from_numpy(np.concatenate(chunks))).numpy()
        start = 0
        for example, mine in zip(examples, chunks, strict=True):
            example.codes[example.labelled] = codes[start : start + len(mine)]
            start += len(mine)

    def visuals(self, row: int, boundaries: Sequence[int], pairs: Sequence[int]) -> Visuals:
        from jala_ray.video.frames import clip_frames

        del pairs  # pixels serve every encoder; pairs are formed on the trainer's device
        spec = self.assets.spec
        clip = self._clips[row]
        sizes = {"image": (spec.image_size, spec.image_size), "frames": (spec.frame_size, spec.frame_size)}
        if not boundaries:
            return Visuals(clip_frames(clip, [0], {"image": sizes["image"]})["image"][0])
        wanted = list(boundaries)
        if wanted[0] != 0:
            raise ValueError("boundaries must begin with 0, the clip's first frame")
        pictures = clip_frames(clip, wanted, sizes)
        return Visuals(pictures["image"][0], frames=pictures["frames"])

    def blank(self) -> Visuals:
        spec = self.assets.spec
        image = np.zeros((3, spec.image_size, spec.image_size), np.uint8)
        return Visuals(image, frames=np.zeros((1, 3, spec.frame_size, spec.frame_size), np.uint8))
