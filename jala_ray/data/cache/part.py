"""One part of a cache (`folder.py`): rows read, tokenised and encoded group by group, and written to a scratch folder."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jala_ray.data.cache.folder import Cache, CacheFacts, CacheIndex
from jala_ray.data.cache.records import pack_record
from jala_ray.data.manifest.places import clip_hashes, stored_uri
from jala_ray.data.manifest.table import batched
from jala_ray.data.samples.source import BadRow, Look, ManifestSource, Pictures, Sample
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.domains import DOMAIN_KINDS
from jala_ray.models.frame_encoder import FrameEncoder
from jala_ray.types import SPLITS, UserError

GROUP = 16
"""Clips tokenised together, while the group before is decoded and encoded."""
ENCODED = 64
"""Frames or pairs of one pass of the encoder."""


@dataclass
class ReadRow:
    """A row, and what a cache holds of its pictures."""

    row: PlanRow
    sample: Sample | BadRow
    image: np.ndarray | None = None
    units: np.ndarray | None = None
    """(U, P, Dv): see `records.CachedSample`."""

    def fail(self, error: UserError) -> None:
        self.sample = BadRow(self.sample.clip_id, error)


def read_rows(
    source: ManifestSource, rows: list[PlanRow], encoder: FrameEncoder | None, facts: CacheFacts
) -> Iterator[ReadRow]:
    """Every row in order. While a group is decoded and encoded, the packets of the next one are fetched."""
    source.expect(rows)
    waiting: tuple[list[ReadRow], Iterator[Pictures | UserError]] | None = None
    for group in chain(batched(rows, GROUP), (None,)):
        arranged = None
        if group is not None:
            reads = [ReadRow(row, sample) for row, sample in zip(group, source.samples(group), strict=True)]
            looks = [_look(read.sample) for read in reads if isinstance(read.sample, Sample)]
            arranged = (reads, source.pictures(looks if encoder is not None else []))
        if waiting is not None:
            reads, pictures = waiting
            if encoder is not None:
                _encode_group(reads, pictures, encoder, facts)
            yield from reads
        waiting = arranged


def _look(sample: Sample) -> Look:
    chunks = sample.labelled.shape[1]
    return Look(sample, range(chunks + 1), range(chunks))


def _encode_group(
    reads: list[ReadRow], pictures: Iterator[Pictures | UserError], encoder: FrameEncoder, facts: CacheFacts
) -> None:
    """Fill in images and units; what cannot be read or stored becomes a bad row."""
    seen: list[tuple[ReadRow, np.ndarray]] = []
    sound = [read for read in reads if isinstance(read.sample, Sample)]
    for read, picture in zip(sound, pictures, strict=True):
        if isinstance(picture, UserError):
            read.fail(picture)
            continue
        read.image = picture["image"] if facts.image_size else None
        seen.append((read, picture["frames"]))
    units = encode(encoder, [frames for _, frames in seen], np.dtype(facts.dtype))
    for (read, _), found in zip(seen, units, strict=True):
        read.units = found
        if not np.isfinite(found).all():
            remedy = "Pass --dtype float32." if facts.dtype == "float16" else ""
            read.fail(UserError("features", "infinity or NaN", f"numbers that {facts.dtype} holds", remedy))


def encode(encoder: FrameEncoder, clips: Sequence[np.ndarray], dtype: np.dtype) -> list[np.ndarray]:
    """Boundary frames (N + 1, 3, h, w) uint8 of each clip -> its units (U, P, Dv), on the encoder's device, in few passes."""
    if not clips:
        return []
    device = next(encoder.parameters()).device
    frames = torch.from_numpy(np.concatenate(clips))
    ends = np.cumsum([len(clip) for clip in clips])
    index = torch.arange(len(frames))
    if encoder.pairs:
        # Of every boundary but a clip's last: (v_t, v_t), then (v_t, v_t+1).
        first = torch.from_numpy(np.delete(np.arange(len(frames)), ends - 1))
        index = torch.stack([first, first, first, first + 1], dim=1).reshape(-1, 2)
        ends = 2 * (ends - np.arange(1, len(clips) + 1))
    parts = [encoder(frames[index[i : i + ENCODED]].to(device)).cpu() for i in range(0, len(index), ENCODED)]
    units = torch.cat(parts).to(getattr(torch, dtype.name)).numpy()
    return np.split(units, ends[:-1])


class PartWriter:
    """The files of one part, in a scratch folder."""

    def __init__(self, folder: Path, cache: Cache) -> None:
        self.folder, self.cache = folder, cache
        names = ["records", *(["arrays"] if cache.facts.encoder is not None else [])]
        self.files = {name: (folder / name).open("wb") for name in names}
        self.rows: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []
        self.shape: tuple[int, ...] = (0, 0)

    def add(self, read: ReadRow) -> None:
        sample = read.sample
        if isinstance(sample, BadRow):
            error = {"field": sample.error.field, "reason": str(sample.error)}
            self.errors.append({"row": read.row.index, "clip_id": sample.clip_id, **error})
            return
        clip = sample.clip
        assert clip is not None and clip.video_uri is not None
        pieces = [] if read.image is None else [read.image.tobytes()]
        if read.units is not None:
            self.shape = read.units.shape[1:]
            pieces += [unit.tobytes() for unit in read.units]
        at = self.files["arrays"].tell() if pieces else 0
        for piece in pieces:
            self.files["arrays"].write(piece)
        record = pack_record(sample, self.cache.base, at, [zlib.crc32(piece) for piece in pieces])
        video = hashlib.blake2b(stored_uri(clip.video_uri, self.cache.base).encode(), digest_size=4).digest()
        self.rows.append(
            {
                "row": read.row.index,
                "crc": zlib.crc32(record),
                "size": len(record),
                "offset": self.files["records"].tell(),
                "cell": (clip.source, clip.task_type),
                "split": SPLITS.index(clip.split),
                "domain": clip.domain,
                "signals": tuple(sorted(clip.signals)),
                "chunks": sample.labelled.shape[1] * len(sample.hands),
                "labelled": bool(sample.labelled.any()),
                "video": int.from_bytes(video, "little"),
                "clip": int(clip_hashes([clip.clip_id], [DOMAIN_KINDS[clip.domain].thinned])[0]),
            }
        )
        self.files["records"].write(record)

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def finish(self) -> None:
        index = CacheIndex.from_rows(self.rows, shape=self.shape, errors=tuple(self.errors))
        (self.folder / "index.safetensors").write_bytes(index.to_bytes())
