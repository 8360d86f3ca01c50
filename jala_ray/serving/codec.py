"""msgpack with arrays, in the two forms that robots' clients speak. Bytes from a network are never unpickled, and cost little more than
their own size.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, cast

import msgpack
import numpy as np

from jala_ray.types import UserError

MAX_BYTES = 64 << 20
"""Of one message, at most: four pictures of 1080p are 25 MB."""
CONTAINERS, ITEMS = 4096, 1 << 20
"""Maps and lists of a message, and their entries, at most: what is large belongs into arrays."""
DIMENSIONS = 8
DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
TEXT = re.compile(r"[<>|=]?U\d{1,4}")
"""What GR00T's clients may send instructions as."""
NPY_HEADER = 10_000

Reader = Callable[[Mapping[Any, Any]], Any]


def pack(value: Any) -> bytes:
    """openpi's form."""
    return cast(bytes, msgpack.packb(value, default=_openpi_written))


def unpack(data: bytes) -> Any:
    """The inverse of `pack`. Raises `UserError` for bytes that are no message of that form."""
    return _unpacked(data, _openpi_read)


def pack_npy(value: Any) -> bytes:
    """GR00T's form."""
    return cast(bytes, msgpack.packb(value, default=_npy_written))


def unpack_npy(data: bytes) -> Any:
    """The inverse of `pack_npy`. Raises `UserError` for bytes that are no message of that form."""
    return _unpacked(data, _npy_read)


def _unpacked(data: bytes, read: Reader) -> Any:
    left = [CONTAINERS, ITEMS]

    def spent(count: int) -> None:
        left[0], left[1] = left[0] - 1, left[1] - count
        if min(left) < 0:
            raise UserError("message", "more maps, lists or entries", f"{CONTAINERS} with {ITEMS} entries at most")

    def of_map(found: dict[Any, Any]) -> Any:
        spent(len(found))
        return read(found)

    def of_list(found: list[Any]) -> Any:
        spent(len(found))
        return found

    try:
        return msgpack.unpackb(
            data, object_hook=of_map, list_hook=of_list, max_array_len=ITEMS, max_map_len=CONTAINERS, max_ext_len=1024
        )
    except UserError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise UserError("message", f"{len(data)} bytes", "msgpack", f"{type(error).__name__}: {error}") from None


def array(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    """An array that owns nothing but the bytes that were sent. Raises `UserError` unless they are exactly as many as it declares."""
    text = dtype.decode("ascii", "replace") if isinstance(dtype, bytes) else dtype
    if not isinstance(text, str) or not (DTYPE.fullmatch(text) or TEXT.fullmatch(text)):
        raise UserError("array's dtype", dtype, "numbers, as <f4 or |u1")
    sizes = list(shape) if isinstance(shape, (list, tuple)) else None
    if sizes is None or len(sizes) > DIMENSIONS or not all(type(n) is int and 0 <= n < 1 << 40 for n in sizes):
        raise UserError("array's shape", shape, f"at most {DIMENSIONS} sizes")
    kind = np.dtype(text)
    declared = math.prod(sizes) * kind.itemsize
    if not isinstance(data, bytes) or len(data) != declared:
        got = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise UserError("array's data", got, f"the {declared} bytes of {text} {tuple(sizes)}")
    return np.frombuffer(data, kind).reshape(sizes)


def _openpi_read(found: Mapping[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        return array(found.get(b"data"), found.get(b"dtype"), found.get(b"shape"))
    if b"__npgeneric__" in found:
        return _scalar(found.get(b"data"), found.get(b"dtype"))
    return found


def _scalar(data: Any, dtype: Any) -> np.generic:
    if not isinstance(dtype, str) or not DTYPE.fullmatch(dtype) or not isinstance(data, (bool, int, float)):
        raise UserError("scalar", (data, dtype), "a number, and a dtype as <f4")
    try:
        return np.dtype(dtype).type(data)
    except (OverflowError, ValueError) as error:
        raise UserError("scalar", data, f"a value of {dtype}", str(error)) from None


def _openpi_written(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        _numbers(value.dtype)
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        _numbers(value.dtype)
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return _plain(value)


def _npy_written(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        out = BytesIO()
        np.save(out, value, allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": out.getvalue()}
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (Mapping, tuple, set, frozenset)):
        return dict(value) if isinstance(value, Mapping) else list(value)
    raise TypeError(f"{type(value).__name__} is nothing that msgpack can hold")


def _numbers(dtype: np.dtype[Any]) -> None:
    if not DTYPE.fullmatch(dtype.str):
        raise TypeError(f"an array of {dtype} is nothing that a client can read")


def _npy_read(found: Mapping[Any, Any]) -> Any:
    return npy(found.get("as_npy")) if "__ndarray_class__" in found else found


def npy(data: Any) -> np.ndarray:
    """The array of an .npy file. Its header is checked before anything is made of it; `numpy.load` would first make what it declares."""
    if not isinstance(data, bytes) or data[:6] != b"\x93NUMPY" or len(data) < 12:
        raise UserError("as_npy", type(data).__name__, "the bytes of an .npy file")
    wide = data[6] >= 2
    length = int.from_bytes(data[8 : 12 if wide else 10], "little")
    start = (12 if wide else 10) + length
    if length > NPY_HEADER or start > len(data):
        raise UserError("as_npy", f"a header of {length} bytes", f"at most {NPY_HEADER}, and all of them there")
    try:
        header = ast.literal_eval(data[start - length : start].decode("utf-8"))
        order, dtype, shape = header["fortran_order"], header["descr"], header["shape"]
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise UserError("as_npy", "a header that can't be read", "numpy's", str(error)) from None
    if not order or not isinstance(shape, tuple):
        return array(data[start:], dtype, shape)
    return array(data[start:], dtype, shape[::-1]).transpose()
