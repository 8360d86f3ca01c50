"""Labelled hand-chunks in memory, and which of them are held out together."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jala_ray.training.teacher.moments import FOLDS
from jala_ray.types import UserError

SPREAD = 3
"""Folds that videos must fall into before a whole video is held out at once."""

HeldBy = Literal["video", "clip"]


class Origin(NamedTuple):
    """Where a hand-chunk is from."""

    domain: str
    source: str
    clip: str
    video: str
    """As a manifest stores it: relative where that is possible, so that a moved manifest has the same folds."""
    row: int
    """Of the manifest."""
    time: int
    """t of its pair (v_t, v_{t+delta})."""


@dataclass
class LabelledChunks:
    """Some labelled hand-chunks (E)."""

    cells: Tensor
    """(E, 2, cells, Dv) pooled features of v_t and v_{t+delta}."""
    motion: Tensor
    """(E, 15, 99) features."""
    hand: Tensor
    """(E,) int64."""
    origin: list[Origin]

    def __len__(self) -> int:
        return len(self.hand)

    def cut(self, begin: int, end: int) -> LabelledChunks:
        part = slice(begin, end)
        return LabelledChunks(self.cells[part], self.motion[part], self.hand[part], self.origin[part])

    @property
    def domain(self) -> list[str]:
        return [origin.domain for origin in self.origin]

    @classmethod
    def joined(cls, parts: Iterable[LabelledChunks]) -> LabelledChunks | None:
        """None of none."""
        held = list(parts)
        if not held:
            return None
        cells, motion, hand = (
            torch.cat([getattr(part, name) for part in held]) for name in ("cells", "motion", "hand")
        )
        return cls(cells, motion, hand, [origin for part in held for origin in part.origin])


def folds(origins: Sequence[Origin], by: HeldBy) -> Tensor:
    """(E,) int64: chunks of one video, or of one clip, share a fold."""
    names = [getattr(origin, by).encode() for origin in origins]
    return torch.from_numpy(np.array([zlib.crc32(name) % FOLDS for name in names], np.int64))


def held_by(origins: Sequence[Origin]) -> HeldBy:
    """What is held out at once: videos, whose clips look alike; clips where there are few videos. Raises `UserError` for too few clips."""
    if len(folds(origins, "video").unique()) >= SPREAD:
        return "video"
    if len(folds(origins, "clip").unique()) < 2:
        expected = f"clips that fall, by their ids, into two of {FOLDS} folds or more, so that some can be held out"
        remedy = "Label more clips, or train with a preset that needs no teacher (jala, no_align)."
        raise UserError("labelled clips", len({origin.clip for origin in origins}), expected, remedy)
    return "clip"
