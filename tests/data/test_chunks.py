"""Which rows a tokenizer learns from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.samples.chunks import ManifestRow, ManifestRows, read_chunks, rows_with_labels
from jala_ray.types import HandState, HandTrack, Split
from tests.data.test_source import make_clip


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Two manifests: clips with one or two labelled hands, 1 to 3 chunks, some under two task types, held out or unlabelled."""
    folder = tmp_path_factory.mktemp("chunks")
    paths = []
    for m in range(2):
        clips = []
        for i in range(12):
            clip = make_clip(f"{m}-{i}", seconds=1.0 + i % 3, split="val" if i % 5 == 4 else "train")
            if i % 4 == 1:
                clip = dataclasses.replace(clip, hands=(clip.hands[0], HandTrack(HandState.ABSENT)))
            if i % 6 == 2:
                clip = dataclasses.replace(clip, hands=(HandTrack(HandState.UNTRACKED),) * 2, video_uri="a.mp4")
            clips.append(clip)
            if i % 3 == 0:
                clips.append(dataclasses.replace(clip, task_type="description"))
        paths.append(write_manifest(clips, folder / f"{m}.parquet").path)
    return tuple(paths)


def by_hand(manifests: tuple[str, ...], split: Split, max_chunks: int, seed: int) -> list[ManifestRow]:
    found = []
    for path in manifests:
        seen = set()
        for i, row in enumerate(Manifest(path).index.to_pylist()):
            chunks = sum(row["left_labelled"]) + sum(row["right_labelled"])
            if row["split"] == split and chunks and row["clip_id"] not in seen:
                seen.add(row["clip_id"])
                found.append((ManifestRow(path, i), chunks))
    chosen, total = [], 0
    for i in np.random.default_rng(seed).permutation(len(found)):
        if total >= max_chunks:
            break
        chosen.append(found[i][0])
        total += found[i][1]
    return chosen


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("max_chunks", [0, 1, 7, 1000])
def test_rows_are_those_of_the_definition(manifests: tuple[str, ...], split: Split, max_chunks: int) -> None:
    for seed in (0, 1):
        rows = rows_with_labels(manifests, split, max_chunks, seed)
        assert list(rows) == by_hand(manifests, split, max_chunks, seed)
    assert list(rows_with_labels((), split, max_chunks, 0)) == []


def test_slices_are_rows_too(manifests: tuple[str, ...]) -> None:
    rows = rows_with_labels(manifests, "train", 1000, 0)
    assert isinstance(rows[2:5], ManifestRows) and list(rows[2:5]) == list(rows)[2:5]
    whole, parts = read_chunks(rows), [read_chunks(rows[:5]), read_chunks(rows[5:])]
    assert len(whole["features"]) == len(whole["side"]) == len(whole["beta"]) > len(rows)
    for name, values in whole.items():
        np.testing.assert_array_equal(values, np.concatenate([part[name] for part in parts]))
