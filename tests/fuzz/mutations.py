"""Every damaged file of the fuzzing, by number: the same seed and number make the same bytes on every machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tests.fuzz.bases import MANIFEST, MP4S, ROWS, VIDEOS, real_videos
from tests.fuzz.boxes import IN_MP4, IN_OTHERS
from tests.fuzz.damage import DAMAGE, damaged
from tests.fuzz.manifests import IN_MANIFEST

VIDEO, MANIFESTS = "video", "manifest"
KINDS = (
    *((VIDEO, kind) for kind in (*DAMAGE, *IN_MP4, *IN_OTHERS)),
    *((MANIFESTS, kind) for kind in IN_MANIFEST),
)
"""(target, mutation); case i has kind i modulo their number."""
REAL_SHARE = 0.3
"""Of the video cases, where real videos are there."""


@dataclass(frozen=True)
class Case:
    """One damaged file, or manifest of two."""

    number: int
    target: str
    kind: str
    base: str
    """Name of the file that was damaged."""
    files: dict[str, bytes]
    """By name; a video has its own."""
    sound: bytes
    """The video before the damage."""


@dataclass(frozen=True)
class Cases:
    """Makes cases from the folder of `bases.make_bases`."""

    folder: Path
    seed: int
    shared: Path | None = None
    """Folder of real data; None: only what is made here."""

    @cached_property
    def _videos(self) -> dict[str, bytes]:
        return {name: (self.folder / "videos" / name).read_bytes() for name in VIDEOS}

    @cached_property
    def _real(self) -> dict[str, bytes]:
        return {f"real_{file.name}": file.read_bytes() for file in real_videos(self.shared)} if self.shared else {}

    @cached_property
    def _manifest(self) -> dict[str, bytes]:
        return {name: (self.folder / "manifest" / name).read_bytes() for name in (MANIFEST, ROWS)}

    def case(self, number: int) -> Case:
        target, kind = KINDS[number % len(KINDS)]
        rng = np.random.default_rng([self.seed, number])
        if target == MANIFESTS:
            return Case(number, target, kind, MANIFEST, IN_MANIFEST[kind](dict(self._manifest), rng), b"")
        pool = self._real if self._real and rng.random() < REAL_SHARE else self._videos
        names = [name for name in pool if _fits(kind, name)]
        base = names[int(rng.integers(len(names)))]
        data = _damaged_video(pool[base], rng, kind)
        return Case(number, target, kind, base, {base: data}, pool[base])


def _fits(kind: str, name: str) -> bool:
    is_mp4 = name in MP4S or name.endswith(".mp4")
    return is_mp4 if kind in IN_MP4 else not is_mp4 if kind in IN_OTHERS else True


def _damaged_video(data: bytes, rng: np.random.Generator, kind: str) -> bytes:
    structured = IN_MP4.get(kind) or IN_OTHERS.get(kind)
    if structured is not None:
        changed = bytearray(data)
        structured(changed, rng)
        return bytes(changed)
    begin = 0 if rng.integers(2) else len(data) * 3 // 4  # headers of most mp4s lie behind their packets
    return damaged(data, rng, kind, begin)
