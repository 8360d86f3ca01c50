"""The contract of a batch: its fields, and its way to and from tensors by name."""

from __future__ import annotations

import functools
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jala_ray.batch import Batch, rows_at
from jala_ray.data.samples import collate
from jala_ray.data.samples.layout import Laid
from jala_ray.data.samples.share import _DTYPES, StepShare
from jala_ray.presets import PRESETS, VARIANTS
from jala_ray.training.learner import Learner
from jala_ray.types import UserError
from tests.support import lay_out, make_assets, make_batch, make_learner, packed, same_batch, small, void_batch

DTYPES = {*_DTYPES.values()}


def of_bytes(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    """Any bits, NaN and infinities among them; of bool, 0 or 1."""
    size = torch.empty(shape, dtype=dtype).nbytes
    drawn = torch.randint(0, 2 if dtype == torch.bool else 256, (size,), generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.uint8).view(dtype).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text("abc_/éI0", min_size=1, max_size=6),
        st.tuples(st.sampled_from(sorted(DTYPES, key=str)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=4,
    ),
    st.integers(0, 99),
)
def test_a_parcel_keeps_every_bit_of_any_signal(signals: dict[str, tuple[torch.dtype, list[int]]], seed: int) -> None:
    made = {name: of_bytes(dtype, tuple(shape), seed) for name, (dtype, shape) in signals.items()}
    batch = replace(void_batch(2, 3, 2), signals=made)
    (found,) = StepShare.from_buffer(packed(StepShare(3, [batch], 2))).micro
    assert found.signals.keys() == made.keys()
    same_batch(found, batch)


@pytest.mark.parametrize("dtype", sorted(DTYPES, key=str), ids=str)
def test_every_dtype_travels(dtype: torch.dtype) -> None:
    batch = replace(void_batch(1, 3, 1), signals={"a": of_bytes(dtype, (3, 5), 1), "b": of_bytes(dtype, (), 2)})
    same_batch(StepShare.from_buffer(packed(StepShare(0, [batch, batch], 1))).micro[1], batch)


def test_a_dtype_that_cannot_travel_is_named() -> None:
    batch = replace(void_batch(1, 3, 1), signals={"spin": torch.zeros(2, dtype=torch.complex128)})
    with pytest.raises(UserError, match=r"dtype of 0/signals/spin: got torch\.complex128"):
        StepShare(0, [batch], 1).parcel()


def test_a_strange_batch_is_refused_by_name() -> None:
    tensors = void_batch(1, 3, 1).tensors()
    with pytest.raises(UserError, match=r"column of a batch: got 'extrinsics', expected one of .*signals/NAME"):
        Batch.from_tensors(tensors | {"extrinsics": torch.zeros(1)})
    with pytest.raises(UserError, match="expected hand, weight as well"):
        Batch.from_tensors({name: t for name, t in tensors.items() if name not in ("hand", "weight")})
    with pytest.raises(TypeError, match="extrinsics"):
        Batch(**tensors, extrinsics=torch.zeros(1))


def test_a_collated_batch_is_what_its_fields_say() -> None:
    config = small()
    laid = lay_out(config, make_assets(config))
    batch = make_batch(laid, packing=True, pad_multiple=16)
    rows, samples = len(batch.ids), len(laid)
    padding = batch.sample < 0
    assert padding.any() and rows < samples
    for name, value in {"ids": 0, "position": 0}.items():
        assert (getattr(batch, name)[padding] == value).all(), name
    for name in ("hand", "k", "image_k", "target", "pair", "text_target"):
        assert (getattr(batch, name)[padding] == -1).all(), name
    for f in fields(Batch):
        if f.name not in ("weight", "images", "frames", "signals") and getattr(batch, f.name) is not None:
            assert getattr(batch, f.name).dtype == torch.int64, f.name
    assert (batch.weight.dtype, batch.images.dtype, batch.signals) == (torch.float32, torch.uint8, {})
    assert batch.plan_row.tolist() == list(range(samples)) and len(batch.images) == samples
    assert batch.frames is not None and batch.pairs is not None and batch.first is not None
    assert batch.frames.dtype == torch.uint8 and batch.pairs.max() < len(batch.frames)
    assert batch.frame_features is None and batch.pair_features is None


def test_to_reaches_every_tensor() -> None:
    batch = replace(void_batch(1, 3, 1), signals={"state": torch.ones(2)}, first=torch.zeros(1, 2))
    moved = batch.to(torch.device("meta"))
    assert {n: t.device.type for n, t in moved.tensors().items() if t.device.type != "meta"} == {"deep": "cpu"}
    assert moved.tensors().keys() == batch.tensors().keys() and moved.frames is None
    same_batch(batch.to(torch.device("cpu")), batch)


def test_the_old_name_holds() -> None:
    assert collate.Batch is Batch


# --- wherever a sample lies ------------------------------------------------------------------------------------------


@functools.cache
def samples(preset: str = "tiny") -> list[Laid]:
    config = small(PRESETS[preset], data__labels="all")
    return lay_out(config, make_assets(config))


LISTS = [f.name for f in fields(Batch) if f.name.endswith("_at")]
TOKENS = ("ids", "position", "hand", "k", "image_k", "target", "text_target")


def of_sample(batch: Batch, i: int) -> dict[str, list[object]]:
    """All that the batch says of its sample i, counted from where the sample begins."""
    assert batch.frames is not None and batch.pairs is not None and batch.first is not None
    (rows, places), width = (batch.sample == i).nonzero().T, batch.ids.shape[1]
    row, start, end = int(rows[0]), int(places[0]), int(places[-1]) + 1
    assert places.tolist() == list(range(start, end)) and (rows == row).all(), "in one piece"
    found = {name: getattr(batch, name)[row, start:end].tolist() for name in TOKENS}
    found |= {name: (getattr(batch, name)[row, start:end] - start).tolist() for name in ("lo", "hi")}
    for name in LISTS:
        here = getattr(batch, name) - (row * width + start)
        found[name] = here[(here >= 0) & (here < end - start)].tolist()
    pair = batch.pair[row, start:end]
    found["shown"] = [batch.frames[batch.pairs[p]].tolist() if p >= 0 else None for p in pair.tolist()]
    found["first"] = batch.frames[batch.first[i]].tolist()
    return found | {"image": batch.images[i].tolist(), "plan_row": [batch.plan_row[i].item()]}


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(9)), st.integers(1, 9), st.booleans(), st.sampled_from([1, 16]))
def test_a_sample_is_the_same_in_any_order_and_packing(
    order: list[int], count: int, packing: bool, multiple: int
) -> None:
    laid = samples()
    assert len(laid) == 9
    batch = make_batch([laid[i] for i in order[:count]], packing=packing, pad_multiple=multiple)
    for place, i in enumerate(order[:count]):
        assert of_sample(batch, place) == of_sample(make_batch([laid[i]]), 0)
    for name in LISTS:
        at = getattr(batch, name)
        assert at.dtype == torch.int64 and (at[1:] > at[:-1]).all(), name
        assert (rows_at(batch.sample, at) >= 0).all(), name
    read = {int(i) for i in rows_at(batch.sample, batch.read_at)}
    if not read:  # the shortest stands for one
        shortest = min(len(laid[i]) for i in order[:count])
        assert sorted(batch.deep.tolist())[-1] == shortest and batch.deep.sum() == shortest
        return
    for row, deep in zip(batch.sample.tolist(), batch.deep.tolist(), strict=True):
        lying = [i for i in row if i >= 0]
        first = lying[:deep] if packing or lying[0] in read else []
        assert [i for i in lying if i in read] == first, "samples that are read come first in a row"


@settings(max_examples=6, deadline=None)
@given(st.permutations(range(9)), st.booleans())
def test_and_so_are_its_losses(order: list[int], packing: bool) -> None:
    """In float64, where the order of sums cannot hide a difference."""
    learner, laid = double(), samples()
    with torch.no_grad():
        _, _, found = learner.run(make_batch([laid[i] for i in order], packing, 16))
        for place, i in enumerate(order):
            _, _, alone = learner.run(make_batch([laid[i]]))
            for name, term in alone.terms.items():
                torch.testing.assert_close(found.terms[name][place], term[0], atol=1e-9, rtol=0)


@functools.cache
def double() -> Learner:
    return make_learner(small()).double().eval()


@pytest.mark.parametrize("packing", [False, True])
def test_lists_are_the_flags_of_samples(packing: bool) -> None:
    laid = samples()
    batch = make_batch(laid, packing, 16)
    flags = {"state_at": "state", "scored_at": "scored", "read_at": "read"}
    for name, column in flags.items():
        expected = sum(int(sample.columns[column].sum()) for sample in laid)
        assert len(getattr(batch, name)) == expected > 0
    for name, column in {"image_at": batch.image_k, "text_at": batch.text_target, "pair_at": batch.pair}.items():
        assert torch.equal(getattr(batch, name), (column.flatten() >= 0).nonzero()[:, 0]), name


# --- what the losses read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", *(f"tiny_{variant}" for variant in VARIANTS)])
def test_losses_read_every_last_hidden_state_of_the_list(name: str) -> None:
    """No other is computed, and NaN at any place of the list spoils a term, unless the objective reads no output at all."""
    config = small(PRESETS[name], data__labels="all")
    learner, batch = make_learner(config).eval(), make_batch(samples(name), True, 16)
    with torch.no_grad():
        features, out, losses = learner.run(batch)
        assert out.final.shape[0] == len(batch.read_at) and 0 < len(batch.read_at) < batch.ids.numel() / 2
        assert all(value.isfinite().all() for value in losses.terms.values())
        for place in range(0, len(batch.read_at), max(1, len(batch.read_at) // 5)):
            spoilt = out.final.clone()
            spoilt[place] = torch.nan
            changed = replace(out, final=spoilt)
            terms = learner.objective.loss(learner.vla, batch, features, changed).terms
            read = any(value.isnan().any() for value in terms.values())
            assert read == (not name.startswith("tiny_lapa_actions"))
