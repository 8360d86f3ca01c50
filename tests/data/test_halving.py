"""A micro-batch in two equals what `collate` makes of either half's samples, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jala_ray.batch import Batch
from jala_ray.data.samples.halving import fitting, halves
from jala_ray.data.samples.layout import Laid
from jala_ray.presets import PRESETS
from tests.support import MIXED, Kind, U, lay_out, make_assets, make_batch, same_batch, small

PRESET_NAMES = ["tiny", "tiny_next_token_dino", "tiny_lapa_codes", "tiny_no_align"]
"""Latents added to masks and as a prefix, pairs alone, no pairs."""
SOURCES = ("frames", "frame_features", "pair_features")


@pytest.fixture(scope="module")
def samples() -> dict[str, list[Laid]]:
    """Twelve of each preset: of every task, labelled or not, some of which no loss reads."""
    found = {}
    for name in PRESET_NAMES:
        config = small(PRESETS[name])
        kinds = [*MIXED, Kind("pure_video", (U, U), 1), Kind("pure_video", (U, U), 3), MIXED[0]]
        found[name] = lay_out(config, make_assets(config), kinds)
    return found


def seen_as(sample: Laid, source: str, pictures: int, rng: np.random.Generator) -> Laid:
    """The sample with features in the place of frames, with so many pictures for the backbone, and a signal."""
    shown = dict(sample.pictures)
    if sample.boundaries and source == "frame_features":
        shown |= {"features": rng.normal(size=(len(shown.pop("frames")), 4, 3)).astype(np.float16)}
    if sample.boundaries and source == "pair_features":
        del shown["frames"]
        shown |= {"pair_features": rng.normal(size=(1 + len(sample.pairs), 4, 3)).astype(np.float16)}
        shown |= {"still_features": rng.normal(size=(len(sample.pairs), 4, 3)).astype(np.float16)}
    columns = dict(sample.columns)
    if pictures > 1:
        first = np.flatnonzero(columns["image_k"] >= 0)
        for name, column in columns.items():
            more = [np.insert(column, first[-1] + 1, np.tile(column[first], pictures - 1))]
            columns[name] = more[0]
        shown["image"] = rng.integers(0, 256, (pictures, *sample.pictures["image"].shape), np.uint8)
    signals = {"force": rng.normal(size=(2, 3)).astype(np.float32)}
    return replace(sample, columns=columns, pictures=shown, signals=signals, weight=float(rng.integers(0, 2)))


@settings(max_examples=60)
@given(
    name=st.sampled_from(PRESET_NAMES),
    source=st.sampled_from(SOURCES),
    packing=st.booleans(),
    multiple=st.sampled_from([1, 16, 128]),
    several=st.booleans(),
    numbers=st.lists(st.integers(0, 11), min_size=2, max_size=9),
    seed=st.integers(0, 5),
)
def test_halves_are_what_collate_makes(
    samples: dict[str, list[Laid]],
    name: str,
    source: str,
    packing: bool,
    multiple: int,
    several: bool,
    numbers: list[int],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    laid = [seen_as(samples[name][i], source, int(rng.integers(1, 4)) if several else 1, rng) for i in numbers]
    laid = [replace(sample, plan_row=number) for number, sample in enumerate(laid)]
    batch = make_batch(laid, packing=packing, pad_multiple=multiple)
    first, second = halves(batch, multiple)
    count = len(first.weight)
    assert 0 < count < len(laid) and count + len(second.weight) == len(laid)
    same_batch(first, make_batch(laid[:count], packing=packing, pad_multiple=multiple))
    same_batch(second, make_batch(laid[count:], packing=packing, pad_multiple=multiple))
    # The cut is where half of the tokens are reached, and not a sample earlier.
    lengths = [len(sample) for sample in laid]
    assert 2 * sum(lengths[: count - 1]) < sum(lengths)
    assert 2 * sum(lengths[:count]) >= sum(lengths) or count == len(laid) - 1


def test_parts_are_no_longer_than_asked(samples: dict[str, list[Laid]]) -> None:
    laid = samples["tiny"]
    batch = make_batch(laid, packing=True, pad_multiple=8)
    assert fitting(batch, None, 8) == [batch] and fitting(batch, batch.ids.numel(), 8) == [batch]
    longest = max(len(sample) for sample in laid)
    for tokens in (1, longest, 2 * longest, 3 * longest):
        parts = fitting(batch, tokens, 8)
        assert [row for part in parts for row in part.plan_row.tolist()] == batch.plan_row.tolist()
        assert all(part.ids.numel() <= max(tokens, -(-longest // 8) * 8) for part in parts)
        assert all(len(part.weight) == 1 or part.ids.numel() <= tokens for part in parts)
    assert len(fitting(batch, 1, 8)) == len(laid)


def test_a_batch_of_nothing_that_is_read(samples: dict[str, list[Laid]]) -> None:
    """The shortest sample of each half stands for one that is read."""
    videos = [sample for sample in samples["tiny"] if not sample.columns["read"].any()]
    assert len(videos) >= 3
    batch: Batch = make_batch(videos, packing=True)
    lengths = torch.tensor([len(sample) for sample in videos])
    assert int(batch.deep) == int(lengths.min())
    first, second = halves(batch)
    assert int(first.deep) == int(lengths[: len(first.weight)].min())
    assert int(second.deep) == int(lengths[len(first.weight) :].min())
