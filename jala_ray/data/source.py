"""Where samples come from: a manifest with videos, or a features file (`features.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from jala_ray.types import Clip, HandState, ManifestError, TaskType, UserError

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


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why. `clip_id` is "row I" where even the id cannot be read."""

    clip_id: str
    error: UserError


@dataclass
class Visuals:
    """Pictures of one sample; the arrays of `collate.Laid`."""

    image: np.ndarray
    frames: np.ndarray | None = None
    features: np.ndarray | None = None
    pair_features: np.ndarray | None = None
    still_features: np.ndarray | None = None


class Source(Protocol):
    """Random access to examples. A bad row comes back as a `BadRow`, never as an exception."""

    def examples(self, rows: Sequence[int]) -> list[Example | BadRow]: ...

    def visuals(self, row: int, boundaries: Sequence[int], pairs: Sequence[int]) -> Visuals:
        """v_0 for the backbone; the encoder's frames or features of `boundaries`, or of (v_0, v_0) and `pairs`.

        Raises `UserError` when they cannot be had, as a damaged video's.
        """
        ...

    def blank(self) -> Visuals:
        """Black pictures of one boundary, for padding samples."""
        ...


class ManifestSource:
    """Clips of a manifest: motion tokenised, boundary frames decoded when asked for."""

    def __init__(self, manifest: Manifest, assets: Assets) -> None:
        self.manifest, self.assets = manifest, assets
        self._clips: dict[int, Clip] = {}

    def examples(self, rows: Sequence[int]) -> list[Example | BadRow]:
        self._clips = {}
        found: dict[int, Example | BadRow] = {}
        chunks: dict[int, np.ndarray] = {}
        for row in sorted(set(rows)):  # in the order of the file: neighbours share a row group
            name = f"row {row}"
            try:
                values = self._read(row)
                name = str(values["clip_id"] or name)
                found[row], chunks[row] = self._example(row, values)
            except UserError as error:
                found[row] = BadRow(name, error)
        self._tokenise(found, chunks)
        return [found[row] for row in rows]

    def _read(self, row: int) -> dict[str, Any]:
        """Columns of a row as stored. Raises `StorageError` or `ManifestError` when its row group cannot be read."""
        import pyarrow as pa

        from jala_ray.storage.stores import explained

        path = self.manifest.path
        try:
            with explained("read manifest", path, self.manifest.options):
                return self.manifest.row(row)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise ManifestError(f"row {row} of {path}", str(error), "readable values", "Write it again.") from error

    def _example(self, row: int, values: dict[str, Any]) -> tuple[Example, np.ndarray]:
        """The example, its codes still 0, and its labelled chunks (C, 15, 99) in the order of `codes[labelled]`."""
        from jala_ray.data.rows import row_to_clip
        from jala_ray.hands.resample import chunk_features

        clip = row_to_clip(values, self.manifest.base)
        features, labelled = chunk_features(clip)
        if not labelled.shape[1]:
            shown = f"{clip.model_seconds:.3f} s of model time"
            raise ManifestError("end_s", shown, "at least one chunk, 1 s of model time")
        self._clips[row] = clip
        codes = np.zeros((*labelled.shape, self.assets.motion.K), np.int64)
        states = (clip.hands[0].state, clip.hands[1].state)
        example = Example(
            *(clip.clip_id, clip.task_type, states, labelled, codes),
            *(clip.instructions, clip.description, float(labelled.shape[1])),
        )
        return example, features[labelled]

    def _tokenise(self, found: dict[int, Example | BadRow], chunks: dict[int, np.ndarray]) -> None:
        """Fill in the codes by one call of the motion tokenizer; where it refuses, example by example."""
        try:
            encoded = self._encode(list(chunks.values()))
        except UserError:
            encoded = [self._encode_one(features) for features in chunks.values()]
        for row, codes in zip(chunks, encoded, strict=True):
            example = found[row]
            assert isinstance(example, Example)
            if isinstance(codes, UserError):
                found[row] = BadRow(example.clip_id, codes)
            else:
                example.codes[example.labelled] = codes

    def _encode(self, chunks: list[np.ndarray]) -> list[np.ndarray]:
        """Chunks (C, 15, 99) of each example -> their ids (C, K)."""
        ends = np.cumsum([len(features) for features in chunks])
        if not len(ends) or not ends[-1]:
            return [np.zeros((0, self.assets.motion.K), np.int64) for _ in chunks]
        ids = self.assets.motion.encode(torch.from_numpy(np.concatenate(chunks))).numpy()
        return np.split(ids, ends[:-1])

    def _encode_one(self, features: np.ndarray) -> np.ndarray | UserError:
        try:
            return self._encode([features])[0]
        except UserError as error:
            return error

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
