"""Messages there and back, and bytes that are none: an error, never an unpickling, and no memory that nobody has paid for."""

from __future__ import annotations

import io
import pickle
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from jala_ray.serving.codec import CONTAINERS, ITEMS, pack, pack_npy, unpack, unpack_npy
from jala_ray.types import UserError
from tests.serving.policies import libero
from tests.serving.wire import groot_pack, groot_unpack, openpi_pack, openpi_unpack

NUMBERS = [np.dtype(kind) for kind in ("?", "u1", "<i8", ">i4", "<f2", "<f4", ">f8")]
READERS = [(unpack, openpi_pack), (unpack_npy, groot_pack)]
SMALL = st.sampled_from(NUMBERS).flatmap(lambda kind: arrays(kind, array_shapes(min_dims=0, min_side=0, max_side=4)))


@given(SMALL)
def test_arrays_there_and_back_in_both_forms(values: np.ndarray) -> None:
    for there, back in (
        (pack, openpi_unpack),
        (openpi_pack, unpack),
        (pack_npy, groot_unpack),
        (groot_pack, unpack_npy),
    ):
        found = back(there({"x": values, "y": [1, "a", None]}))
        assert found["x"].dtype == values.dtype and found["x"].shape == values.shape and found["y"] == [1, "a", None]
        np.testing.assert_array_equal(found["x"], values)


def test_scalars_fortran_order_and_text_are_read() -> None:
    assert unpack(openpi_pack({"x": np.float32(1.5), "y": np.int8(-3)})) == {"x": np.float32(1.5), "y": np.int8(-3)}
    turned = np.asfortranarray(np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(unpack_npy(groot_pack({"x": turned}))["x"], turned)
    assert unpack_npy(groot_pack({"x": np.array(["open it"])}))["x"].tolist() == ["open it"]


def declared(dtype: Any, shape: Any, data: Any = b"") -> bytes:
    return msgpack.packb({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape})


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    return groot_pack(
        {
            "x": {
                "__ndarray_class__": True,
                "as_npy": b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data,
            }
        }
    )


class Trap:
    """Ends the test if it is ever unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a message was unpickled",)


def pickled_npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([Trap()], object), allow_pickle=True)
    return out.getvalue()


MALFORMED = [
    b"",
    b"\xc1",
    b"\x92\x01",
    openpi_pack(libero(np.random.default_rng(0)))[:-7],
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x91" * 2000,
    b"\x81" * 5000,
    declared("|O", [1], pickle.dumps(Trap())),
    declared("O", [1], pickle.dumps([Trap()])),
    declared("<M8[s]", [1], b"\0" * 8),
    declared("V8", [1], b"\0" * 8),
    declared([["a", "<f4"]], [1], b"\0" * 4),
    declared("<f4", [1 << 40], b"\0" * 4),
    declared("<f4", [1 << 62, 1 << 62]),
    declared("<f4", [-1], b""),
    declared("<f4", [2], b"\0" * 4),
    declared("<f4", [True], b"\0" * 4),
    declared("<f4", None),
    declared("<f4", [1] * 9, b"\0" * 4),
    declared(7, [1]),
    msgpack.packb({b"__ndarray__": True}),
    msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}),
    msgpack.packb({b"__npgeneric__": True, b"data": [], b"dtype": "<f4"}),
]
MALFORMED_NPY = [
    *MALFORMED[:9],
    groot_pack({"x": {"__ndarray_class__": True, "as_npy": pickled_npy()}}),
    groot_pack({"x": {"__ndarray_class__": True, "as_npy": b"\x93NUMPY"}}),
    groot_pack({"x": {"__ndarray_class__": True, "as_npy": 5}}),
    groot_pack({"x": {"__ndarray_class__": True}}),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}", b"\0" * 4),
    npy("{'descr': '<f4', 'fortran_order': True, 'shape': (-1, 2)}"),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': 3}"),
    npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps(Trap())),
    npy("__import__('os').getcwd()"),
    npy("(" * 9000),
    npy("{}"),
    npy("[" + "1," * 20),
]
CASES = [*((unpack, data) for data in MALFORMED), *((unpack_npy, data) for data in MALFORMED_NPY)]


@pytest.mark.parametrize(
    ("reader", "data"), CASES, ids=[f"{reader.__name__}-{i}" for i, (reader, _) in enumerate(CASES)]
)
def test_what_is_no_message_is_refused_at_once(reader, data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            reader(data)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("reader", "packer"), READERS, ids=["openpi", "groot"])
def test_many_small_things_are_refused_before_they_cost_memory(reader, packer) -> None:
    with pytest.raises(UserError, match="entries at most"):
        reader(msgpack.packb([[] for _ in range(CONTAINERS + 1)]))
    with pytest.raises(UserError, match="entries at most"):
        reader(msgpack.packb([[0] * 1000] * (ITEMS // 1000 + 1)))
    assert reader(packer([[0] * 100] * 100)) == [[0] * 100] * 100


@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_or_an_error_that_explains_itself(data: bytes) -> None:
    for reader, _ in READERS:
        try:
            reader(data)
        except UserError as error:
            assert str(error)


@given(st.data())
def test_a_message_with_bytes_changed_is_a_value_or_an_error(draw: st.DataObject) -> None:
    for reader, packer in READERS:
        data = bytearray(packer(libero(np.random.default_rng(0), size=2)))
        for place in draw.draw(st.lists(st.integers(0, len(data) - 1), max_size=6)):
            data[place] = draw.draw(st.integers(0, 255))
        try:
            reader(bytes(data[: draw.draw(st.integers(0, len(data)))]))
        except UserError as error:
            assert str(error)


def test_what_no_client_can_read_is_not_sent() -> None:
    for value in (np.array([object()]), np.array(["text"]), {1, object()}, object()):
        with pytest.raises(TypeError):
            pack({"x": value})
