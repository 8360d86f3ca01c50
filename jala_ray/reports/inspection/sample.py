"""The rows that an inspection opens: clips read from the manifest, boundary frames drawn, and what their videos say of themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from jala_ray.data.manifest.table import Manifest
from jala_ray.hands.mano import ManoHand, load_pair
from jala_ray.reports.kit.overlay import Frame, draw_boundaries
from jala_ray.types import Clip, Hand, UserError
from jala_ray.video.decode import VideoInfo, probe

THREADS = 8
HEIGHT = 240
"""px of a drawn frame."""
BOUNDARIES = 4
"""Frames drawn of a clip, the first ones."""
DARK = 32
"""Of 255. A frame with 95 % of its pixels below this is very dark."""
FLAT, FLAT_SHARE = 4, 0.9
"""A frame with this share of its pixels within so many levels of the median shows nothing. Drawn skeletons cover less than the rest."""


@dataclass(frozen=True)
class Unreadable:
    row: int
    reason: str


@dataclass(frozen=True)
class ClipFrames:
    """One clip with its frames, or why there are none."""

    row: int
    clip: Clip
    frames: Sequence[Frame] = ()
    info: VideoInfo | None = None
    """What the video file says; None where it does not open."""
    problem: str | None = None
    faults: Mapping[int, str] = field(default_factory=dict)
    """Boundary -> "dark" or "blank"."""


class HasSource(Protocol):
    @property
    def source(self) -> str: ...


T = TypeVar("T", bound=HasSource)


def by_source(items: Iterable[T]) -> dict[str, list[T]]:
    """Clips, or what was found of them, by their sources in alphabetical order."""
    found: dict[str, list[T]] = {}
    for item in sorted(items, key=lambda item: item.source):
        found.setdefault(item.source, []).append(item)
    return found


def read_clips(manifest: Manifest, rows: Sequence[int]) -> tuple[dict[int, Clip], list[Unreadable]]:
    """Clips by row, in order, and the rows that cannot be read. Raises StorageError where the store itself fails."""
    wanted = sorted(set(rows))
    if wanted:
        _ = manifest.places  # once, not by every thread

    def read(row: int) -> Clip | Unreadable:
        try:
            return manifest.clip(row)
        except UserError as error:
            return Unreadable(row, str(error))

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(read, wanted))
    clips = {row: clip for row, clip in zip(wanted, found, strict=True) if isinstance(clip, Clip)}
    return clips, [item for item in found if isinstance(item, Unreadable)]


def look_at(clips: Mapping[int, Clip]) -> list[ClipFrames]:
    """The first boundary frames of some clips with their hands drawn, in order."""
    pair = load_pair()
    hands = {side: pair[side] for side in Hand}
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda row: _look(row, clips[row], hands), clips))


def _look(row: int, clip: Clip, hands: dict[Hand, ManoHand]) -> ClipFrames:
    assert clip.video_uri is not None
    try:
        frames = draw_boundaries(clip, hands, HEIGHT, BOUNDARIES)
        info = probe(clip.video_uri)
    except UserError as error:
        return ClipFrames(row, clip, problem=str(error))
    found = {frame.boundary: fault(frame.image) for frame in frames}
    return ClipFrames(row, clip, frames, info, faults={i: name for i, name in found.items() if name})


def fault(image: Image.Image) -> str | None:
    """ "dark" or "blank" for a picture that shows next to nothing."""
    luma = np.asarray(image.convert("L"), np.int16)
    if np.percentile(luma, 95) < DARK:
        return "dark"
    return "blank" if (np.abs(luma - np.median(luma)) <= FLAT).mean() >= FLAT_SHARE else None
