"""What an adapter is, and what the adapters share: bad files set aside, cutting spans, train/val by name, empty hands."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import ClassVar, Protocol

import numpy as np

from jala_ray.data.adapters.listing import Listing
from jala_ray.data.manifest.rows import clip_id
from jala_ray.data.manifest.writing import Rejection
from jala_ray.progress import each
from jala_ray.registry import Registry
from jala_ray.types import (
    CHUNK_SECONDS,
    MAX_CLIP_SECONDS,
    Clip,
    Domain,
    HandState,
    HandTrack,
    Split,
    UserError,
    VideoError,
)
from jala_ray.video.frames import index_boundaries
from jala_ray.video.packets import PacketScan


class Adapter(Protocol):
    """One source of clips. An adapter is a frozen dataclass: its fields are its options on the command line.

    `clips` yields the same clips with the same ids in the same order on every run. What cannot become a clip
    (a video that does not open, a damaged episode) is a `Rejection`; a wrong option raises UserError.
    """

    name: ClassVar[str]
    """On the command line, and the rows' `source`."""
    domain: ClassVar[Domain]

    def clips(self) -> Iterator[Clip | Rejection]:
        """All clips of the source, one at a time."""
        ...


HELPERS = ("captions", "listing", "hot3d_files", "hot3d_umetrack", "vitra_files")
ADAPTERS: Registry[type[Adapter]] = Registry(
    "adapter", "jala_ray.data.adapters", "jala_ray.adapters", helpers=HELPERS, dash=True
)
"""By the name on the command line: a file `my_source.py` registers `my-source`."""


_UNREADABLE = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, RecursionError),
    *(SyntaxError, TypeError, ValueError, csv.Error, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What parsers (json, numpy, zipfile, unpickling) and conversions raise over a file that is damaged or holds something else."""


@contextlib.contextmanager
def parsing(where: str, expected: str) -> Iterator[None]:
    """Around the parsing of foreign data, and nothing else: what is wrong with it becomes a UserError that names `where`."""
    try:
        yield
    except UserError:
        raise
    except _UNREADABLE as error:
        raise UserError(where, f"{type(error).__name__}: {error}", expected) from error


def each_of(
    source: str,
    listing: Listing,
    names: Iterable[str],
    expected: str,
    read: Callable[[str], Iterable[Clip | Rejection]],
) -> Iterator[Clip | Rejection]:
    """`read(name)` of every file (or folder of files) of a source. One over which it raises UserError is set aside whole, as not being
    what was `expected`.
    """
    for name in each(tuple(names), "files"):
        try:
            found = list(read(name))
        except UserError as error:
            yield rejection(source, listing, name, f"{expected}: {error}")
        else:
            yield from found


def unreachable(source: str, listing: Listing, *suffixes: str) -> Iterator[Rejection]:
    """Records of the files with one of the suffixes (any case), and of the folders, that could not be had."""
    for name, why in listing.faults.items():
        if name.lower().endswith((*suffixes, "/")):
            yield rejection(source, listing, name, why)


def rejection(source: str, listing: Listing, name: str, reason: str) -> Rejection:
    """The record of a file of a source that becomes no clip."""
    return Rejection(clip_id(source, name, 0.0, 0.0, "rejected"), source, listing.address(name), reason)


def split_of(name: str, val_fraction: float) -> Split:
    """The split of everything cut from one video or sequence, by a hash of its name: stable, and no leak.

    Raises UserError unless 0 <= val_fraction <= 1.
    """
    if not 0 <= val_fraction <= 1:
        raise UserError("val_fraction", val_fraction, "a number in [0, 1]")
    draw = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64
    return "val" if draw < val_fraction else "train"


def pieces(start_s: float, end_s: float, time_scale: float) -> list[tuple[float, float]]:
    """Cut a span of source seconds into clips of at most 10 s of model time.

    A last piece shorter than a chunk is dropped. A span too short stays, for the validator to name.
    """
    longest, shortest = MAX_CLIP_SECONDS * time_scale, CHUNK_SECONDS * time_scale
    count = max(1, int(np.ceil((end_s - start_s) / longest - 1e-6)))
    starts = start_s + longest * np.arange(count)
    cut = [(float(start), float(min(start + longest, end_s))) for start in starts]
    return [span for i, span in enumerate(cut) if i == 0 or span[1] - span[0] >= shortest - 1e-6]


def untracked_hands() -> tuple[HandTrack, HandTrack]:
    """Both hands of a video without detections."""
    return HandTrack(HandState.UNTRACKED), HandTrack(HandState.UNTRACKED)


def with_packets(items: Iterable[Clip | Rejection]) -> Iterator[Clip | Rejection]:
    """Clips with the packet indices of their videos; clips of a video that cannot be indexed, or does not open, come as they are.

    Reads every packet of every video once, where clips of one video follow each other.
    """
    scanned: tuple[str, PacketScan | None] = ("", None)
    for item in items:
        if isinstance(item, Rejection) or item.video_uri is None or item.packets is not None:
            yield item
            continue
        try:
            if scanned[0] != item.video_uri:
                scanned = (item.video_uri, None)
                scanned = (item.video_uri, PacketScan(item.video_uri))
            yield replace(item, packets=index_boundaries(scanned[1], item) if scanned[1] else None)
        except VideoError:
            yield item  # reading the sample will say what is wrong with it
