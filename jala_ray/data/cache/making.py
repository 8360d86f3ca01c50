"""Making a cache (`folder.py`), part by part: on Ray by `pipeline.work_through`, or in a loop. A rerun makes only what is missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from jala_ray import storage
from jala_ray.config import EncoderConfig
from jala_ray.config.encoders import ENCODERS
from jala_ray.data.cache.folder import Cache, CacheFacts, CacheIndex, DType, Store, digest
from jala_ray.data.cache.part import PartWriter, read_rows
from jala_ray.data.manifest.places import PLACE
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.manifest.writing import absolute
from jala_ray.data.samples.assets import Assets, tokenizer_key
from jala_ray.data.samples.source import ManifestSource
from jala_ray.data.sampling.plan import PlanRow, plan_rows
from jala_ray.models.frame_encoder import FrameEncoder, encoder_key
from jala_ray.storage import StorageOptions
from jala_ray.storage.claims import missing_parts
from jala_ray.types import ManifestError, StorageError

PART_ROWS = 256
READERS = 16
MAX_PARTS = 1 << 16
"""What `places.PLACE` can count."""


def manifest_key(manifest: Manifest) -> str:
    """Digest of all rows' contents, wherever they lie: a manifest that was moved or cut into other files keeps it."""
    hashed = hashlib.blake2b(digest_size=8)
    for name in ("row_crc", "row_size"):
        hashed.update(manifest.places[name].tobytes())
    return hashed.hexdigest()


class CachePart(NamedTuple):
    """Some hundred rows that one task makes."""

    number: int
    places: np.ndarray
    """(n,) of `places.PLACE`, in the manifest."""


@dataclass(frozen=True)
class CacheJob:
    """What every task of a job knows; small, hashable and picklable."""

    cache: Cache
    files: tuple[str, ...]
    """Of the manifest's rows."""
    encoder: EncoderConfig | None
    gpu: bool
    """The encoder runs on a GPU, where the process has one."""
    options: StorageOptions

    def __call__(self, part: CachePart) -> dict[str, Any]:
        """Make a part unless it is there; returns its counts of rows and errors."""
        folder = self.cache.part(part.number)
        if not storage.is_committed(folder, self.options):
            self._make(folder, plan_rows(part.places, self.files, 0, range(len(part.places))))
        index = self.index(part.number)
        return {"part": part.number, "rows": len(index), "left_out": len(index.errors)}

    def index(self, number: int) -> CacheIndex:
        place = storage.join(self.cache.part(number), "index.safetensors")
        return CacheIndex.from_bytes(storage.read_bytes(place, self.options))

    def _make(self, folder: str, rows: list[PlanRow]) -> None:
        source, encoder = _open(self)
        with storage.scratch("cache") as scratch:
            with closing(PartWriter(scratch, self.cache)) as writer:
                for read in read_rows(source, rows, encoder, self.cache.facts):
                    writer.add(read)
                writer.finish()
            try:
                storage.upload_dir(scratch, folder, self.options, replace_unfinished=True)
            except StorageError:
                if not storage.is_committed(folder, self.options):  # else a twin of this task was first
                    raise


@lru_cache(maxsize=1)
def _open(job: CacheJob) -> tuple[ManifestSource, FrameEncoder | None]:
    assets = Assets.open(storage.join(job.cache.path, "assets"), job.options)
    encoder = None
    if job.encoder is not None:
        device = torch.device("cuda" if job.gpu and torch.cuda.is_available() else "cpu")
        encoder = FrameEncoder.build(job.encoder).to(device)
    return ManifestSource(job.cache.base, assets, job.options), encoder


# --- the job ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Making:
    """A job that has claimed its folder."""

    job: CacheJob
    places: np.ndarray
    """(n,) of `places.PLACE`: the rows of the manifest that have a video, in its order."""
    starts: tuple[int, ...]
    """First row of each file of the manifest."""

    @property
    def parts(self) -> int:
        return -(-len(self.places) // self.job.cache.facts.part_rows)

    def missing(self) -> list[CachePart]:
        """Parts that are not there yet."""
        size = self.job.cache.facts.part_rows
        parts = [CachePart(number, self.places[number * size : (number + 1) * size]) for number in range(self.parts)]
        folder, last = storage.join(self.job.cache.path, "parts"), storage.COMMIT_FILE
        return missing_parts(parts, lambda part: f"{part.number:05d}/{last}", folder, self.job.options)

    def drop_errors(self) -> None:
        """Delete the parts with rows that could not be read, so that they are made again."""
        there = sorted(set(range(self.parts)) - {part.number for part in self.missing()})
        for number, index in zip(there, self._indices(there), strict=True):
            if index.errors:
                storage.delete_dir(self.job.cache.part(number), self.job.options)

    def _indices(self, numbers: Sequence[int]) -> list[CacheIndex]:
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(self.job.index, numbers))

    def finish(self, max_error_share: float) -> tuple[Cache, list[dict[str, Any]]]:
        """Write index and `cache.json`, when all parts are there; returns the cache and the rows that it lacks.

        Raises `ManifestError` when more than this share of the rows could not be read; the reasons are in `errors.jsonl`.
        """
        cache, options = self.job.cache, self.job.options
        index = CacheIndex.joined(self._indices(range(self.parts)), self.starts)
        errors = list(index.errors)
        lines = "".join(json.dumps(error) + "\n" for error in errors)
        storage.write_bytes(storage.join(cache.path, "errors.jsonl"), lines.encode(), options)
        if len(errors) > max_error_share * len(self.places) or not len(index):
            expected = f"<= data.max_error_share = {max_error_share:.1%} of {len(self.places)} rows"
            remedy = f"Repair them and run again with --retry; the first: {errors[0]['reason']}"
            raise ManifestError(f"rows left out of {cache.path}", len(errors), expected, remedy)
        payload = replace(index, errors=()).to_bytes()
        storage.write_bytes(storage.join(cache.path, "index.safetensors"), payload, options)
        done = replace(cache, shape=index.shape, rows=len(index), index=digest(payload))
        done.claim(options).write()
        return done, errors


@dataclass(frozen=True)
class Contents:
    """What a cache is to hold of its rows, and how it is stored."""

    store: Store
    dtype: DType = "float16"
    """Of the features."""
    part_rows: int = PART_ROWS


def begin(
    path: str,
    manifest: Manifest,
    assets: Assets,
    encoder: EncoderConfig,
    contents: Contents,
    options: StorageOptions,
    *,
    gpu: bool = False,
) -> Making:
    """Claim a folder (local or s3://) for the cache of all rows of a manifest that have a video.

    Raises `ManifestError` when the folder holds a cache of anything else, or the manifest has no videos.
    """
    store, part_rows = contents.store, contents.part_rows
    if part_rows < 1:
        raise ManifestError("part_rows", part_rows, "an integer >= 1")
    facts = CacheFacts(manifest_key(manifest), tokenizer_key(assets), store, part_rows)
    if store != "codes":
        facts = replace(
            facts, encoder=encoder_key(encoder), pairs=ENCODERS.find(encoder.kind).pairs, dtype=contents.dtype
        )
    if store == "all":
        facts = replace(facts, image_size=assets.spec.image_size)
    cache = Cache(absolute(path), facts, manifest.base)
    places = _rows_with_video(manifest)
    if not len(places):
        raise ManifestError("data.manifest", manifest.path, "at least one row with a video")
    if -(-len(places) // part_rows) > MAX_PARTS:
        least = -(-len(places) // MAX_PARTS)
        raise ManifestError("part_rows", part_rows, f">= {least} for {len(places)} rows", "Pass --part-rows.")
    storage.probe(cache.path, options)
    cache.claim(options).take()
    folder = storage.join(cache.path, "assets")
    if not storage.is_committed(folder, options):
        with storage.scratch("assets") as scratch:
            assets.save(scratch)
            storage.upload_dir(scratch, folder, options, replace_unfinished=True)
    job = CacheJob(cache, tuple(manifest.row_files), encoder if store != "codes" else None, gpu, options)
    return Making(job, places, tuple(manifest.starts[:-1].tolist()))


def _rows_with_video(manifest: Manifest) -> np.ndarray:
    """(n,) of `places.PLACE`."""
    parts = [np.zeros(0, PLACE)]
    for number in range(len(manifest.row_files)):
        table = manifest.file_columns(number, ["video_uri", "row_offset", "row_size", "row_crc"])
        place = np.zeros(len(table), PLACE)
        place["row"], place["file"] = manifest.starts[number] + np.arange(len(table)), number
        for name in ("offset", "size", "crc"):
            place[name] = table[f"row_{name}"].to_numpy()
        parts.append(place[table["video_uri"].is_valid().to_numpy()])
    return np.concatenate(parts)
