"""A cache of a manifest: what training computes anew in every epoch otherwise, computed once (`making.py`) and read by ranges.

```
CACHE/
  cache.json                what made the cache, and what it holds; readable once it names the index
  index.safetensors         what planning needs of every row
  errors.jsonl              rows that could not be read, with reasons; they are not in the index
  assets/                   the motion tokenizer that made the codes
  parts/00000/              some hundred rows, a committed folder
    records                 one record per row: codes, text, and where its frames lie in the video
    arrays                  row after row: its first picture, and features of every boundary (or pair); absent without features
    index.safetensors
```

A cache is bound to the manifest, the motion tokenizer, the encoder and the preprocessing that made it; another one's is refused.
Planning and reading need numpy and safetensors alone, and PyAV where pictures still come from videos.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Literal

import numpy as np
import safetensors.numpy

from jala_ray import storage
from jala_ray.config import DataConfig
from jala_ray.data.cache.records import json_array
from jala_ray.data.manifest.places import ANY, PLACE, Catalogue, RowFilter, selected
from jala_ray.storage import StorageOptions
from jala_ray.storage.claims import Claim
from jala_ray.types import DOMAINS, SPLITS, ManifestError, Split

FORMAT = "jala_ray.cache/1"
PREPROCESSING_VERSION = 2
"""Part of every cache's identity: raise it when poses become other chunks, or videos other pictures."""
MAKE_AGAIN = "The cache is stale: make it again with `jala cache`, in another folder."

Store = Literal["codes", "features", "all"]
STORES: tuple[Store, ...] = ("codes", "features", "all")
DType = Literal["float16", "float32"]
DTYPES: tuple[DType, ...] = ("float16", "float32")


# --- the cache -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CacheFacts:
    """What made a cache. Two caches with the same facts hold the same."""

    manifest: str
    """`making.manifest_key`."""
    tokenizer: str
    """`assets.tokenizer_key`."""
    store: Store
    """codes; codes and features; or `all`: the first pictures too, so that no video is needed."""
    part_rows: int
    encoder: str | None = None
    """`encoders.encoder_key` of the features; None without them."""
    pairs: bool = False
    """Features are of pairs (v_t, v_{t+delta}) and (v_t, v_t), t = 0..N-1; else of boundaries 0..N."""
    dtype: DType = "float32"
    image_size: int = 0
    """Side of the stored first pictures, px; 0 without them."""
    preprocessing: int = PREPROCESSING_VERSION
    format: str = FORMAT


@dataclass(frozen=True)
class Cache:
    """An opened cache. Small and hashable, so that workers get it whole."""

    path: str
    facts: CacheFacts
    base: str
    """Folder from which relative video addresses count."""
    shape: tuple[int, int] = (0, 0)
    """(P, Dv) of the features of one boundary or pair."""
    rows: int = 0
    index: str | None = None
    """Digest of `index.safetensors`; None: the cache is unfinished."""

    @classmethod
    def read(cls, path: str, options: StorageOptions | None = None) -> Cache:
        """What `cache.json` says. Raises `ManifestError` where it is no cache of this version, `MissingFile` where there is none."""
        place = storage.join(path, "cache.json")
        content = storage.read_bytes(place, options)
        try:
            stored = json.loads(content)
            if stored["facts"]["format"] != FORMAT:
                raise ManifestError(f"{place}: format", stored["facts"]["format"], repr(FORMAT), MAKE_AGAIN)
            facts = CacheFacts(**stored.pop("facts"))
            return cls(path, facts, shape=tuple(stored.pop("shape")), **stored)
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, ManifestError):
                raise
            raise ManifestError(place, repr(error), "a cache's description", MAKE_AGAIN) from error

    def claim(self, options: StorageOptions | None = None) -> Claim:
        """`cache.json` as it is written down when the cache begins, and once more when it is finished. Raises `ManifestError`."""
        beside = dataclasses.asdict(self)
        known = {fact.name: fact.default for fact in dataclasses.fields(CacheFacts) if fact.default is not MISSING}
        how: dict[str, Any] = {"under": "facts", "of": beside.pop("path"), "error": ManifestError}
        facts, remedy = beside.pop("facts"), "Choose another folder or delete it."
        return Claim(
            self.path,
            "cache.json",
            facts,
            "cache",
            remedy,
            options,
            beside=beside,
            upgrade=lambda was: known | was,
            **how,
        )

    @classmethod
    def open(cls, path: str, options: StorageOptions | None = None) -> Cache:
        """A finished cache. Raises `ManifestError` for anything else."""
        try:
            cache = cls.read(path, options)
        except storage.MissingFile as error:
            remedy = "Make one with `jala cache`."
            raise ManifestError("data.cache", path, "a folder with a cache.json", remedy) from error
        if cache.index is None:
            remedy = "Run `jala cache` again as it began: what is there is kept."
            raise ManifestError("data.cache", path, "a finished cache", remedy)
        return cache

    def refuse_stale(self, *, tokenizer: str, encoder: str | None, image_size: int, manifest: str | None) -> None:
        """Raises `ManifestError` where the cache was made with anything else than a run has.

        `encoder` and `manifest` are None where the run uses no features, or names no manifest.
        """
        facts = self.facts
        wanted: dict[str, Any] = {"tokenizer": tokenizer, "preprocessing": PREPROCESSING_VERSION}
        wanted |= {"manifest": manifest} if manifest is not None else {}
        wanted |= {"encoder": encoder} if encoder is not None and facts.encoder is not None else {}
        wanted |= {"image_size": image_size} if facts.image_size else {}
        for name, value in wanted.items():
            if getattr(facts, name) != value:
                raise ManifestError(f"data.cache {self.path}: {name}", getattr(facts, name), repr(value), MAKE_AGAIN)

    def part(self, number: int) -> str:
        return storage.join(self.path, "parts", f"{number:05d}")


# --- the index -------------------------------------------------------------------------------------------------------


_WORDS = {"cell": "cells", "domain": "domains", "signals": "signal_sets"}
"""Columns that are places in lists of words, and the lists."""
_NO_SIGNALS: tuple[tuple[str, ...], ...] = ((),)
_PLACE = ("row", "crc", "size", "offset", "chunks")
_COLUMNS: dict[str, type] = {
    **{name: PLACE[name].type for name in _PLACE},
    "cell": np.uint16,
    "split": np.uint8,
    "domain": np.uint8,
    "signals": np.uint16,
    "labelled": np.bool_,
    "video": np.uint32,
    "clip": np.uint64,
}


@dataclass(frozen=True, eq=False)
class CacheIndex:
    """Rows of a cache, or of one part of it, in the manifest's order: 44 bytes each."""

    columns: Mapping[str, np.ndarray]
    """(n,) each. `row`: number in the manifest; `crc`, `size`, `offset`: of the record; `chunks`: as in `places.PLACE`; `cell`, `domain`,
    `signals`: places in `cells`, `domains` and `signal_sets`; `split`: place in `types.SPLITS`; `labelled`: has a labelled chunk; `video`:
    hash of the video's address; `clip`: `places.clip_hashes`."""
    cells: tuple[tuple[str, str], ...]
    """(source, task type)."""
    counts: tuple[int, ...]
    """Rows of each part, one after another."""
    starts: tuple[int, ...] = (0,)
    """First row of each file of the manifest: there a window of rows of one video ends."""
    shape: tuple[int, int] = (0, 0)
    errors: tuple[dict[str, Any], ...] = ()
    """Rows that are missing: row, clip_id, field, reason."""
    domains: tuple[str, ...] = DOMAINS
    """The papers' two first, and what else there is."""
    signal_sets: tuple[tuple[str, ...], ...] = _NO_SIGNALS
    """The different sets of signals that rows have."""

    def __len__(self) -> int:
        return len(self.columns["row"])

    def to_bytes(self) -> bytes:
        facts = {name: getattr(self, name) for name in ("cells", "counts", "starts", "shape", "errors")}
        columns = dict(self.columns)
        if self.domains != DOMAINS:
            facts["domains"] = self.domains
        if self.signal_sets == _NO_SIGNALS:
            columns.pop("signals")
        else:
            facts["signal_sets"] = self.signal_sets
        return safetensors.numpy.save({**columns, "facts": json_array(facts)})

    @classmethod
    def from_bytes(cls, payload: bytes) -> CacheIndex:
        stored = safetensors.numpy.load(payload)
        facts = json.loads(stored.pop("facts").tobytes())
        cells = tuple((source, task) for source, task in facts.pop("cells"))
        sets = tuple(map(tuple, facts.pop("signal_sets", _NO_SIGNALS)))
        stored.setdefault("signals", np.zeros(len(stored["row"]), np.uint16))
        stored.setdefault("chunks", np.zeros(len(stored["row"]), np.uint8))  # made before: rows count alike
        return cls(stored, cells, signal_sets=sets, **{name: tuple(values) for name, values in facts.items()})

    @classmethod
    def read(cls, cache: Cache, options: StorageOptions | None = None) -> CacheIndex:
        """Of a finished cache. Raises `StorageError`, and `ManifestError` where its bytes are not those that were written."""
        place = storage.join(cache.path, "index.safetensors")
        payload = storage.read_bytes(place, options)
        if digest(payload) != cache.index:
            remedy = "Run `jala cache` again: the parts are kept."
            raise ManifestError(place, "other bytes", "those that were written", remedy)
        return cls.from_bytes(payload)

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], **facts: Any) -> CacheIndex:
        """Of one part; `rows` by column, with (source, task type) as `cell`, and words for `domain` and `signals`."""
        words = {name: tuple(sorted({row[name] for row in rows})) for name in _WORDS}
        words["domain"] = (*DOMAINS, *(word for word in words["domain"] if word not in DOMAINS))
        words["signals"] = words["signals"] or _NO_SIGNALS
        columns = {
            name: np.array([words[name].index(row[name]) if name in words else row[name] for row in rows], kind)
            for name, kind in _COLUMNS.items()
        }
        named = {_WORDS[name]: found for name, found in words.items() if name != "cell"}
        return cls(columns, words["cell"], (len(rows),), **named, **facts)

    @classmethod
    def joined(cls, parts: Sequence[CacheIndex], starts: tuple[int, ...]) -> CacheIndex:
        columns = {
            name: np.concatenate([part.columns[name] for part in parts]) for name in _COLUMNS if name not in _WORDS
        }
        words: dict[str, tuple[Any, ...]] = {}
        for name, field in _WORDS.items():
            known: dict[Any, int] = {}
            if name == "domain":
                known |= {word: number for number, word in enumerate(DOMAINS)}
            numbers = [[known.setdefault(word, len(known)) for word in getattr(part, field)] for part in parts]
            kind = _COLUMNS[name]
            renumbered = [
                np.array(mine or [0], kind)[part.columns[name]] for part, mine in zip(parts, numbers, strict=True)
            ]
            columns[name], words[field] = np.concatenate(renumbered), tuple(known)
        return cls(
            columns,
            counts=tuple(len(part) for part in parts),
            starts=starts,
            shape=next((part.shape for part in parts if len(part)), (0, 0)),
            errors=tuple(error for part in parts for error in part.errors),
            **words,
        )

    def catalogue(self, cache: Cache, data: DataConfig, split: Split, wanted: RowFilter = ANY) -> Catalogue:
        """As `catalogue.catalogue` of the manifest, whose plans it shares where no row is missing.

        Raises `ManifestError` when the training split has none.
        """
        columns = self.columns
        keep = columns["split"] == SPLITS.index(split)
        if wanted.domain is not None:
            keep &= np.array([word == wanted.domain for word in self.domains] or [False])[columns["domain"]]
        if wanted.signals:
            has = [set(wanted.signals) <= set(held) for held in self.signal_sets]
            keep &= np.array(has or [False])[columns["signals"]]
        if data.labels == "labelled_only":
            keep &= columns["labelled"]
        chosen = np.flatnonzero(keep)
        place = np.zeros(len(chosen), PLACE)
        for name in _PLACE:
            place[name] = columns[name][chosen]
        place["file"] = np.searchsorted(np.cumsum(self.counts), chosen, side="right")
        video = columns["video"][chosen]
        file = np.searchsorted(self.starts, place["row"], side="right")
        new = np.ones(len(chosen), bool)
        new[1:] = (video[1:] != video[:-1]) | (file[1:] != file[:-1])
        files = tuple(storage.join(cache.part(number), "records") for number in range(len(self.counts)))
        found = Catalogue(place, columns["cell"][chosen], new, self.cells, files)
        found = selected(found, columns["clip"][chosen], data.wild_fraction if split == "train" else 1.0)
        if not len(found) and wanted.domain is None:
            expected = f"at least one row of split {split!r}{wanted.told}"
            raise ManifestError("data.cache", cache.path, expected, f"It has {len(self)} rows in all.")
        return found


def digest(payload: bytes) -> str:
    return hashlib.blake2b(payload, digest_size=8).hexdigest()
