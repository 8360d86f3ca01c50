"""Batches of samples with signals and several pictures: the same numbers for each sample in any order and packing, bit for bit by Ray."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jala_ray.batch import Batch, rows_at
from jala_ray.data.samples.layout import FILL, TOKEN_COLUMNS, Laid
from jala_ray.data.samples.recipe import Recipe
from jala_ray.data.samples.share import StepShare
from jala_ray.data.samples.source import Sample
from jala_ray.types import SIGNAL_DTYPES, HandState, UserError
from tests.support import make_assets, make_batch, make_learner, packed, same_batch, small

LISTS = [f.name for f in fields(Batch) if f.name.endswith("_at")]
IMAGE_TOKENS = 3
ABSENT = (HandState.ABSENT, HandState.ABSENT)


@st.composite
def sample_lists(draw: st.DrawFn) -> list[Laid]:
    """Samples with the same signals, each of its own length, with pictures and flags of its own."""
    names = draw(st.lists(st.sampled_from(["state", "action", "force", "pad"]), unique=True, max_size=3))
    kinds = {
        name: (draw(st.sampled_from(SIGNAL_DTYPES)), tuple(draw(st.lists(st.integers(1, 3), max_size=2))))
        for name in names
    }
    return [draw(laid(number, kinds)) for number in range(draw(st.integers(1, 6)))]


@st.composite
def laid(draw: st.DrawFn, number: int, kinds: dict[str, tuple[str, tuple[int, ...]]]) -> Laid:
    pictures, words = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    parts = [np.full(words, -1), *[np.r_[np.arange(IMAGE_TOKENS), -1]] * pictures]
    k = np.concatenate(parts)
    columns = {name: np.full(len(k), FILL.get(name, 0), np.int64) for name in TOKEN_COLUMNS} | {"image_k": k}
    columns["ids"] = rng.integers(0, 50, len(k))
    for name in ("scored", "state", "read"):
        columns[name] = (rng.random(len(k)) < draw(st.sampled_from([0.0, 0.5]))).astype(np.int64)
    arrays = {}
    for name, (dtype, shape) in kinds.items():
        elements = st.floats(-9, 9, width=16) if dtype.startswith("float") else None
        arrays[name] = draw(hnp.arrays(np.dtype(dtype), shape, elements=elements))
    image = rng.integers(0, 256, (pictures, 3, 2, 2)).astype(np.uint8)
    return Laid(columns, signals=arrays, pictures={"image": image}, plan_row=number)


def said(batch: Batch, i: int) -> dict[str, Any]:
    """All that a batch says of its sample i, counted from where it begins."""
    (rows, places), width = (batch.sample == i).nonzero().T, batch.ids.shape[1]
    row, start, end = int(rows[0]), int(places[0]), int(places[-1]) + 1
    found: dict[str, Any] = {n: getattr(batch, n)[row, start:end].tolist() for n in ("ids", "position", "image_k")}
    for name in LISTS:
        here = getattr(batch, name) - (row * width + start)
        found[name] = here[(here >= 0) & (here < end - start)].tolist()
    mine = rows_at(batch.sample, batch.image_at) == i
    found["shown"] = batch.images[batch.picture[mine]].tolist()
    found["signals"] = {name: (str(t.dtype), t[i].numpy().tobytes()) for name, t in batch.signals.items()}
    return found | {"plan_row": batch.plan_row[i].item()}


@settings(max_examples=60, deadline=None)
@given(sample_lists(), st.randoms(use_true_random=False), st.booleans(), st.sampled_from([1, 8]))
def test_a_sample_is_the_same_wherever_it_lies(made: list[Laid], random: Any, packing: bool, multiple: int) -> None:
    order = list(range(len(made)))
    random.shuffle(order)
    batch = make_batch([made[i] for i in order], packing=packing, pad_multiple=multiple)
    for place, i in enumerate(order):
        assert said(batch, place) == said(make_batch([made[i]]), 0)
    share = StepShare(3, [batch], len(made))
    same_batch(StepShare.from_buffer(packed(share)).micro[0], batch)


def one(**signals: np.ndarray) -> Laid:
    columns = {name: np.full(2, FILL.get(name, 0), np.int64) for name in TOKEN_COLUMNS}
    return Laid(columns, signals=signals, pictures={"image": np.zeros((3, 2, 2), np.uint8)}, plan_row=0)


def test_samples_that_disagree_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"signal state of a batch: got 'float32 \[2\], float32 \[3\]'"):
        make_batch([one(state=np.zeros(2, np.float32)), one(state=np.zeros(3, np.float32))])
    with pytest.raises(UserError, match="signal state of a batch: got 'int64 \\[\\], none'"):
        make_batch([one(state=np.array(1)), one()])


def test_a_sample_that_fills_a_batch_may_lack_signals() -> None:
    batch = make_batch([one(state=np.full(2, 7, np.int32)), replace(one(), weight=0.0)])
    assert batch.signals["state"].tolist() == [[7, 7], [0, 0]] and batch.signals["state"].dtype == torch.int32


class Wanting(Recipe[None]):
    def draw(self, rng: np.random.Generator, sample: Sample) -> None:
        return None

    def lay_out(self, sample: Sample, chance: None) -> Laid:
        return one(state=self.signal(sample, "state").values)

    def padding(self) -> Laid:
        return one()


def test_what_lacks_a_signal_is_told_which_objective_wants_it() -> None:
    config = small()
    sample = Sample("clip7", "control", ABSENT, np.zeros((2, 1), bool), np.zeros((2, 1, 0), np.int64), (), "", 1.0, 0)
    with pytest.raises(
        UserError,
        match=r"signals of clip7: got 'no signals', expected 'state' among them\. The objective jala reads it",
    ):
        Wanting(config, make_assets(config)).lay_out(sample, None)
    with pytest.raises(UserError, match="The objective jala must name it in `signals`"):
        Wanting(config, make_assets(config)).statistics("state")
    learner = make_learner(config)
    learner.objective.columns = ("signals/state",)
    with pytest.raises(UserError, match="signals/state") as caught:
        learner.check_columns(make_batch([one()]))
    assert "Jala" in str(caught.value)
