"""The catalogue of a manifest: what planning needs, read from its Parquet files one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jala_ray.config import DataConfig
from jala_ray.data.manifest.examine import refuse_contradictions
from jala_ray.data.manifest.places import ANY, PLACE, Catalogue, RowFilter, clip_hashes, selected
from jala_ray.domains import DOMAIN_KINDS
from jala_ray.types import HAND_NAMES, ManifestError, Split

if TYPE_CHECKING:
    from jala_ray.data.manifest.table import Manifest

_COLUMNS = (
    *("split", "domain", "source", "task_type", "video_uri", "row_offset", "row_size", "row_crc"),
    *("n_chunks", "left_state", "right_state"),
)
MOST_CHUNKS = 127
"""Of a clip of sound length there are ten."""


def catalogue(manifest: Manifest, data: DataConfig, split: Split, wanted: RowFilter = ANY) -> Catalogue:
    """Rows of a split that are wanted and have a video, with labels if `data.labels` asks for them; of the training split,
    `data.wild_fraction` of the wild clips. Read file by file, so that memory holds no text.

    Raises `ManifestError` when the training split has none, and where the Parquet files and the rows were changed apart.
    """
    if split == "train":
        refuse_contradictions(manifest)
    fraction = data.wild_fraction if split == "train" else 1.0
    names = [*_COLUMNS]
    names += ["left_labelled", "right_labelled"] if data.labels == "labelled_only" else []
    names += ["clip_id"] if fraction < 1 else []
    names += ["signal_names"] if wanted.signals else []
    words: dict[tuple[str, str], int] = {}
    parts: list[Catalogue] = []
    hashes: list[np.ndarray] = []
    for number in range(len(manifest.row_files)):
        table = manifest.file_columns(number, names)
        keep = equals(table["split"], split) & table["video_uri"].is_valid().to_numpy()
        if wanted.domain is not None:
            keep &= equals(table["domain"], wanted.domain)
        for name in wanted.signals:
            keep &= holds(table["signal_names"], name)
        if data.labels == "labelled_only":
            keep &= any_true(table["left_labelled"]) | any_true(table["right_labelled"])
        chosen = np.flatnonzero(keep)
        parts.append(_part(table, chosen, number, int(manifest.starts[number]), words))
        if fraction < 1:
            ids = pc.fill_null(table["clip_id"], "").take(pa.array(chosen)).to_pylist()
            thinned = [name for name, kind in DOMAIN_KINDS.items() if kind.thinned]
            hashes.append(clip_hashes(ids, np.any([equals(table["domain"], name) for name in thinned], axis=0)[chosen]))
    found = Catalogue(
        np.concatenate([part.place for part in parts]),
        np.concatenate([part.cell for part in parts]),
        np.concatenate([part.new_video for part in parts]),
        tuple(words),
        tuple(manifest.row_files),
    )
    found = selected(found, np.concatenate(hashes) if hashes else None, fraction)
    if not len(found) and wanted.domain is None:
        expected = f"at least one row of split {split!r} with a video{wanted.told}"
        raise ManifestError("data.manifest", manifest.path, expected, f"It has {len(manifest)} rows in all.")
    return found


def _part(table: pa.Table, chosen: np.ndarray, file: int, first: int, words: dict[tuple[str, str], int]) -> Catalogue:
    """The catalogue of one file's chosen rows; new pairs of source and task type are added to `words`."""
    place = np.zeros(len(chosen), PLACE)
    place["row"], place["file"] = first + chosen, file
    for name in ("offset", "size", "crc"):
        place[name] = table[f"row_{name}"].to_numpy()[chosen]
    place["chunks"] = _hand_chunks(table)[chosen]
    source, sources = _coded(table["source"])
    task, tasks = _coded(table["task_type"])
    pair = source[chosen].astype(np.int64) * len(tasks) + task[chosen]
    used, inverse = np.unique(pair, return_inverse=True)
    numbers = [words.setdefault((sources[code // len(tasks)], tasks[code % len(tasks)]), len(words)) for code in used]
    cell = np.array(numbers, np.uint16)[inverse] if len(used) else np.zeros(0, np.uint16)
    new = np.ones(len(chosen), bool)
    if len(chosen) > 1:
        video = table["video_uri"].take(pa.array(chosen)).combine_chunks()
        new[1:] = pc.call_function("not_equal", [video[1:], video[:-1]]).to_numpy(zero_copy_only=False)
    return Catalogue(place, cell, new)


def _hand_chunks(table: pa.Table) -> np.ndarray:
    """(n,) uint8: chunks times hands that are not absent; 0 for rows without hands, of which one costs what another does."""
    hands = sum((~equals(table[f"{side}_state"], "absent")).astype(np.uint8) for side in HAND_NAMES)
    return np.clip(pc.fill_null(table["n_chunks"], 0).to_numpy(), 0, MOST_CHUNKS).astype(np.uint8) * hands


def equals(column: pa.ChunkedArray, value: str) -> np.ndarray:
    """(n,) bool; the column is dictionary-encoded, so only its few words are compared."""
    codes, words = _coded(column)
    return np.array([word == value for word in words])[codes]


def _coded(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """(n,) places in a list of words, of a dictionary-encoded column; a null, which no sound manifest has, reads ""."""
    coded = column.unify_dictionaries().combine_chunks()
    words = [word or "" for word in coded.dictionary.to_pylist()]
    return pc.fill_null(coded.indices, len(words)).to_numpy(), [*words, ""]


def holds(lists: pa.ChunkedArray, word: str) -> np.ndarray:
    """(n,) bool: which rows of a list<string> column hold a word."""
    column = lists.combine_chunks()
    found = np.zeros(len(column), bool)
    equal = pc.fill_null(pc.call_function("equal", [column.flatten(), pa.scalar(word)]), False)
    found[column.value_parent_indices().to_numpy()[equal.to_numpy(zero_copy_only=False)]] = True
    return found


def any_true(lists: pa.ChunkedArray) -> np.ndarray:
    """(n,) bool: which rows of a list<bool> column hold a true value."""
    column = lists.combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).astype(bool)
    found = np.zeros(len(column), bool)
    found[column.value_parent_indices().to_numpy()[values]] = True
    return found
