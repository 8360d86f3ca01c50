"""The contract of a batch: its fields, and its way to and from tensors by name."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jala_ray.batch import Batch
from jala_ray.data.samples import collate
from jala_ray.data.samples.steps import _DTYPES, StepShare
from jala_ray.types import UserError
from tests.support import lay_out, make_assets, make_batch, packed, same_batch, small, void_batch

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
    batch = make_batch(laid, packing=True, max_tokens=700, pad_multiple=16)
    rows, samples = len(batch.ids), len(laid)
    padding = batch.sample < 0
    assert padding.any() and rows < samples
    for name, value in {"ids": 0, "position": 0, "scored": False, "state": False}.items():
        assert (getattr(batch, name)[padding] == value).all(), name
    for name in ("hand", "k", "image_k", "target", "pair", "text_target"):
        assert (getattr(batch, name)[padding] == -1).all(), name
    for f in fields(Batch):
        if f.name in ("scored", "state"):
            assert getattr(batch, f.name).dtype == torch.bool, f.name
        elif f.name not in ("weight", "images", "frames", "signals") and getattr(batch, f.name) is not None:
            assert getattr(batch, f.name).dtype == torch.int64, f.name
    assert (batch.weight.dtype, batch.images.dtype, batch.signals) == (torch.float32, torch.uint8, {})
    assert batch.plan_row.tolist() == list(range(samples)) and len(batch.images) == samples
    assert batch.frames is not None and batch.pairs is not None and batch.first is not None
    assert batch.frames.dtype == torch.uint8 and batch.pairs.max() < len(batch.frames)
    assert batch.frame_features is None and batch.pair_features is None


def test_to_reaches_every_tensor() -> None:
    batch = replace(void_batch(1, 3, 1), signals={"state": torch.ones(2)}, first=torch.zeros(1, 2))
    moved = batch.to(torch.device("meta"))
    assert {t.device.type for t in moved.tensors().values()} == {"meta"}
    assert moved.tensors().keys() == batch.tensors().keys() and moved.frames is None
    same_batch(batch.to(torch.device("cpu")), batch)


def test_the_old_name_holds() -> None:
    assert collate.Batch is Batch
