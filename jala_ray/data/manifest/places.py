"""What planning knows of the rows that may be drawn, as arrays. Needs numpy alone, for machines without Arrow."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from jala_ray import storage

_ADDRESS = [("row", "<u4"), ("file", "<u2"), ("crc", "<u4"), ("size", "<i4"), ("offset", "<i8")]
PLACE = np.dtype([*_ADDRESS, ("chunks", "u1")])
"""One row: its number in the manifest, where it lies, and its work: its chunks times its hands that are not absent."""


def stored_uri(uri: str, home: str) -> str:
    """An absolute video address as a manifest in folder `home` stores it: relative where the video lies under the folder or beside it
    (`../my_videos/a.mp4`), so that what is moved together stays together, else as it is.
    """
    beside = home.rpartition("/")[0]
    outermost = (
        beside in ("", "s3:/") or beside.rpartition("/")[0] == "s3:/"
    )  # everything lies under a root or a bucket
    for top, prefix in ((home, ""), *(() if outermost else ((beside, "../"),))):
        if uri.startswith(f"{top}/"):
            relative = prefix + uri[len(top) + 1 :]
            if resolve_uri(relative, home) == uri:  # keys may hold what a path may not: `a//b`, `a/../b`
                return relative
    return uri


def resolve_uri(uri: str, home: str) -> str:
    """A video address as stored -> one that opens: relative ones count from the manifest's folder."""
    if "://" in uri or os.path.isabs(uri):
        return uri
    if uri.startswith("../"):
        home, uri = home.rpartition("/")[0], uri[3:]
    return storage.join(home, uri)


class RowAddress(NamedTuple):
    """Where a stored row lies (`rowfile.py`)."""

    file: str
    """Address of the `.rows` file, local or s3://."""
    offset: int
    size: int
    crc: int


@dataclass(frozen=True)
class RowFilter:
    """Which rows of a split may be drawn."""

    domain: str | None = None
    """None: any."""
    signals: tuple[str, ...] = ()
    """Rows have all of these."""

    @property
    def told(self) -> str:
        """For the end of 'at least one row of ...'."""
        return f" and the signals {', '.join(self.signals)}" if self.signals else ""


ANY = RowFilter()


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Rows in the manifest's order. 28 bytes each, so 7.5 M clips take 0.2 GB."""

    place: np.ndarray
    """(n,) of `PLACE`."""
    cell: np.ndarray
    """(n,) uint16: place in `cells`."""
    new_video: np.ndarray
    """(n,) bool: the row's video is not that of the row before it."""
    cells: tuple[tuple[str, str], ...] = (("", ""),)
    """(source, task type) of every mixture cell."""
    files: tuple[str, ...] = ()
    """Addresses of the `.rows` files; empty where rows are reached by their number alone."""

    def __len__(self) -> int:
        return len(self.place)

    def take(self, chosen: np.ndarray) -> Catalogue:
        """Some of the rows, by their ascending places (m,)."""
        run = np.cumsum(self.new_video)[chosen]
        new = np.ones(len(run), bool)
        new[1:] = run[1:] != run[:-1]  # a video's first row may be left out
        return Catalogue(self.place[chosen], self.cell[chosen], new, self.cells, self.files)

    def digest(self) -> str:
        """Of the rows and where they lie: a manifest that was written anew has another one."""
        hashed = hashlib.blake2b(self._addresses().view(np.uint8).data, digest_size=8)
        hashed.update(self.cell.tobytes())
        return hashed.hexdigest()

    def _addresses(self) -> np.ndarray:
        """`place` without the work: runs that began before rows had it go on."""
        return self.place[[name for name, _ in _ADDRESS]].astype(np.dtype(_ADDRESS))


def address(place: np.void, files: tuple[str, ...]) -> RowAddress | None:
    if not files:
        return None
    return RowAddress(files[place["file"]], int(place["offset"]), int(place["size"]), int(place["crc"]))


def selected(found: Catalogue, hashed: np.ndarray | None, fraction: float) -> Catalogue:
    """`fraction` of the wild clips, by `hashed` (n,) of `clip_hashes` (not needed where all stay).

    Cells without rows are left out and the others numbered by name, so that a manifest and its cache have the same plans.
    """
    if fraction < 1:
        assert hashed is not None
        found = found.take(np.flatnonzero(thinned(hashed, fraction)))
    used = np.flatnonzero(np.bincount(found.cell, minlength=len(found.cells))).tolist()
    used.sort(key=lambda cell: found.cells[cell])
    number = np.zeros(max(1, len(found.cells)), np.uint16)
    number[used] = np.arange(len(used))
    return replace(found, cell=number[found.cell], cells=tuple(found.cells[cell] for cell in used))


def thinned(hashed: np.ndarray, fraction: float) -> np.ndarray:
    """(n,) bool: which rows stay, by `clip_hashes`: all that are not wild, and the `fraction` of wild clips with the lowest hashes."""
    wild = hashed > 0
    clips = np.unique(hashed[wild])
    count = round(fraction * len(clips))
    return ~wild | (hashed <= clips[count - 1]) if count else ~wild


def clip_hashes(ids: Iterable[str], wild: Sequence[bool] | np.ndarray) -> np.ndarray:
    """(n,) uint64: of a wild row's clip, never 0; 0 of the others."""
    hashed = np.zeros(len(wild), np.uint64)
    for i, (clip, is_wild) in enumerate(zip(ids, wild, strict=True)):
        if is_wild:
            hashed[i] = int.from_bytes(hashlib.blake2b(clip.encode(), digest_size=8).digest(), "little") | 1
    return hashed
