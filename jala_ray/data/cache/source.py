"""Samples from a cache (`folder.py`): what it holds is read by ranges, what it lacks is decoded from the videos."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from jala_ray import storage
from jala_ray.data.cache.folder import Cache
from jala_ray.data.cache.records import CachedSample, damaged, fetch_record, unpack_record
from jala_ray.data.manifest.places import RowAddress
from jala_ray.data.samples.source import BadRow, Look, Pictures, Sample, Source, StoredRows
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.storage import StorageOptions
from jala_ray.types import UserError

if TYPE_CHECKING:
    from jala_ray.data.samples.assets import Assets
    from jala_ray.video.frames import Wanted

Pieces = dict[int, bytes]
"""Pieces of a sample (see `records.CachedSample`), by number."""


class CacheSource(StoredRows):
    """Rows of a cache: no motion is tokenised, and no picture decoded that is stored."""

    def __init__(
        self,
        cache: Cache,
        base: str,
        assets: Assets,
        options: StorageOptions | None,
        features: bool,
        pixels: bool = False,
    ) -> None:
        """`base`: the folder from which relative video addresses count; `features`: stored ones are wanted; `pixels`: and the frames that
        they are of, which are decoded from the videos.
        """
        super().__init__(assets, options)
        facts = cache.facts
        self.base, self.pairs = base, facts.pairs
        self.features = features and facts.encoder is not None
        self.pixels = pixels
        self.dtype, self.shape = np.dtype(facts.dtype), cache.shape
        self.image_shape = (3, facts.image_size, facts.image_size)
        self.images = int(facts.image_size > 0)
        """Pieces that precede the features: 1 where first pictures are stored."""

    def fetch(self, address: RowAddress) -> bytes:
        return fetch_record(address, self.options)

    def samples(self, rows: Sequence[PlanRow]) -> list[Sample | BadRow]:
        self.expect(rows)
        found = [self._sample(row) for row in rows]
        self._release(rows)
        return found

    def _sample(self, row: PlanRow) -> Sample | BadRow:
        assert row.address is not None
        arrays = storage.join(row.address.file.rpartition("/")[0], "arrays")
        try:
            return unpack_record(self._payload(row), row.index, self.base, arrays)
        except UserError as error:
            return BadRow(f"row {row.index}", error)

    # --- pictures ----------------------------------------------------------------------------------------------------

    def _decoded(self, group: Sequence[Look]) -> Wanted:
        wanted = dict(super()._decoded(group))
        if self.images:
            wanted.pop("image", None)
        if self.features and not self.pixels:
            wanted.pop("frames", None)
        return wanted

    def _stored(self, look: Look) -> Future[Pieces] | None:
        pieces = self._needed(look)
        return self._readers.submit(self._read, look.sample, pieces) if pieces else None

    def _needed(self, look: Look) -> list[int]:
        """Numbers of the stored pieces that a look takes, ascending."""
        units: set[int] = set()
        if self.features and self.pairs and look.boundaries:
            units = {0, *(2 * time for time in look.pairs), *(2 * time + 1 for time in look.pairs)}
        elif self.features:
            units = set(look.boundaries)
        image = range(self.images if look.first else 0)
        return sorted({*image, *(self.images + unit for unit in units)})

    def _read(self, sample: Sample, pieces: Sequence[int]) -> Pieces:
        """Raises `StorageError`, and `ManifestError` where the bytes are not those that were written."""
        assert isinstance(sample, CachedSample)
        ranges = [self._range(sample.at, piece) for piece in pieces]
        parts = storage.read_ranges(sample.arrays, ranges, self.options)
        for piece, (begin, _), part in zip(pieces, ranges, parts, strict=True):
            if zlib.crc32(part) != sample.crc[piece]:
                raise damaged(f"features at byte {begin} of {sample.arrays}")
        return dict(zip(pieces, parts, strict=True))

    def _range(self, at: int, piece: int) -> tuple[int, int]:
        image = self.images * int(np.prod(self.image_shape))
        if piece < self.images:
            return at, at + image
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        begin = at + image + (piece - self.images) * size
        return begin, begin + size

    def _taken(
        self, look: Look, wanted: Wanted, decoded: Pictures, stored: Future[Pieces] | None
    ) -> Pictures | UserError:
        if stored is None:
            return super()._taken(look, wanted, decoded, stored)
        try:
            pieces = stored.result()
            if look.first and self.images:
                decoded = {**decoded, "image": np.frombuffer(pieces[0], np.uint8).reshape(1, *self.image_shape)}
            if not self.features or not look.boundaries:
                return super()._taken(look, wanted, decoded, None)
            own = self._own_image(look, decoded)
            own |= {"frames": self._frames(look, wanted, decoded)} if self.pixels else {}
        except UserError as error:
            return error
        if not self.pairs:
            return own | {"features": self._units(pieces, look.boundaries)}
        return own | {
            "pair_features": self._units(pieces, [0, *(2 * time + 1 for time in look.pairs)]),
            "still_features": self._units(pieces, [2 * time for time in look.pairs]),
        }

    def _units(self, pieces: Pieces, units: Sequence[int]) -> np.ndarray:
        """(len(units), P, Dv)."""
        arrays = [np.frombuffer(pieces[self.images + unit], self.dtype).reshape(self.shape) for unit in units]
        return np.stack(arrays) if arrays else np.zeros((0, *self.shape), self.dtype)

    def blank(self) -> Pictures:
        black = super().blank()
        if not self.features:
            return black
        nothing, own = np.zeros((1, *self.shape), self.dtype), {"image": black["image"]}
        own |= {"frames": black["frames"]} if self.pixels else {}
        if self.pairs:
            return own | {"pair_features": nothing, "still_features": nothing[:0]}
        return own | {"features": nothing}


@dataclass(frozen=True)
class OpenCache:
    """`steps.ShareBuilder.open_source` for a cache; opened once per process, shared by builders."""

    cache: Cache
    base: str
    """The folder from which relative video addresses count."""
    assets: str
    options: StorageOptions
    features: bool
    """Whether the run reads features at all."""
    pixels: bool = False
    """Whether it reads the frames beside them."""

    def __call__(self) -> tuple[Source, Assets]:
        return _open_cache(self)


@lru_cache(maxsize=2)
def _open_cache(opener: OpenCache) -> tuple[Source, Assets]:
    from jala_ray.data.samples.assets import Assets  # not for Ray's coordinating processes, as in `steps.OpenManifest`

    assets = Assets.open(opener.assets, opener.options)
    source = CacheSource(opener.cache, opener.base, assets, opener.options, opener.features, opener.pixels)
    return source, assets
