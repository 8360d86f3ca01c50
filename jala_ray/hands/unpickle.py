"""A pickle reader that runs nothing: plain containers, plain numpy arrays, inert stand-ins for the rest.

Unpickling calls whatever a file names, and numpy's own hooks trust their arguments (`ndarray` called with an
object dtype over raw bytes reads any address), so every name here leads to a function of this file that
checks what it is given.
"""

from __future__ import annotations

import math
import pickle
import re
from typing import Any

import numpy as np

_PLAIN_DTYPE = re.compile(r"[biufSUO][0-9]*")


class StandIn:
    """Holds the state of a pickled object, and does nothing else."""

    state: dict[str, Any]

    def __init__(self, *args: object) -> None:
        self.state = {}

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple):  # (state of the instance dict, state of the slots)
            state = {k: v for part in state if isinstance(part, dict) for k, v in part.items()}
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"unexpected object state {type(state).__name__}")
        self.state = state


class SparseStandIn(StandIn):
    """scipy.sparse.csc_matrix."""


class ChumpyStandIn(StandIn):
    """chumpy.Ch (an array `x`), or chumpy.reordering.Select (flat indices `idxs` of an array `a`)."""


class _Dtype:
    """numpy.dtype as pickles spell it: a code, then a state whose second entry is the byte order."""

    def __init__(self, code: str, *flags: object) -> None:
        if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code):
            raise pickle.UnpicklingError(f"will not read numbers of dtype {code!r}")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"unknown byte order {state[1]!r}")
        self.numpy = self.numpy.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array whose pickled content is checked before numpy takes it."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("an array without a dtype")
        data = data.encode("latin1") if isinstance(data, str) else data
        wanted = list if dtype.numpy.hasobject else bytes
        if not isinstance(data, wanted):
            raise pickle.UnpicklingError(f"array content of type {type(data).__name__}")
        shape = tuple(int(n) for n in shape)
        length = len(data) if wanted is list else len(data) / max(dtype.numpy.itemsize, 1)
        if min(shape, default=0) < 0 or length != math.prod(shape):
            raise pickle.UnpicklingError(f"array content for {length:g} numbers, shape {shape}")
        checked: Any = (1, shape, dtype.numpy, bool(fortran), data)
        super().__setstate__(checked)


class _NdarrayName:
    """What the name numpy.ndarray stands for: a word for `_reconstruct`, not a class to call."""


def _reconstruct(cls: type, shape: tuple[int, ...], kind: bytes | str) -> np.ndarray:
    if cls is not _NdarrayName:
        raise pickle.UnpicklingError(f"will not build an array as {cls!r}")
    return np.zeros(0, np.int8).view(_Array)


def _from_bytes(data: bytes | str, dtype: object) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or dtype.numpy.hasobject:
        raise pickle.UnpicklingError("numbers without a plain dtype")
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype=dtype.numpy)


def _frombuffer(data: bytes, dtype: object, shape: tuple[int, ...], order: str) -> np.ndarray:
    """numpy's form of an array in pickle protocol 5."""
    return _from_bytes(data, dtype).reshape(shape, order="F" if order == "F" else "C").copy()


def _scalar(dtype: object, data: bytes | str) -> object:
    return _from_bytes(data, dtype)[0]


def _new_object(cls: type, base: type, state: object) -> object:
    """copyreg._reconstructor, for the stand-ins alone (how protocol 2 and older make plain objects)."""
    if cls not in (SparseStandIn, ChumpyStandIn) or base is not object:
        raise pickle.UnpicklingError(f"will not build {cls!r}")
    return cls()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """_codecs.encode, as pickles of bytes use it."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"will not encode as {encoding!r}")
    return text.encode("latin1")


def _plain(value: Any) -> Any:
    """The same content with numpy's own arrays; only these may travel on."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(v) for v in value)
    if isinstance(value, StandIn):
        value.state = _plain(value.state)
    elif isinstance(value, np.ndarray) and value.dtype.hasobject:
        whole = np.empty(value.size, object)
        whole[:] = [_plain(v) for v in value.flat]
        return whole.reshape(value.shape)
    return value.view(np.ndarray) if isinstance(value, _Array) else value


def _allowed_names() -> dict[tuple[str, str], object]:
    names: dict[tuple[str, str], object] = {
        ("numpy", "ndarray"): _NdarrayName,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,
        ("chumpy.ch", "Ch"): ChumpyStandIn,
        ("chumpy", "Ch"): ChumpyStandIn,
        ("chumpy.reordering", "Select"): ChumpyStandIn,
    }
    for core in ("numpy.core", "numpy._core"):
        names[(f"{core}.multiarray", "_reconstruct")] = _reconstruct
        names[(f"{core}.multiarray", "scalar")] = _scalar
        names[(f"{core}.numeric", "_frombuffer")] = _frombuffer
    for module in ("scipy.sparse.csc", "scipy.sparse._csc"):
        names[(module, "csc_matrix")] = SparseStandIn
    for module in ("copy_reg", "copyreg"):
        names[(module, "_reconstructor")] = _new_object
    for module in ("__builtin__", "builtins"):
        names[(module, "object")] = object
    return names


class RestrictedUnpickler(pickle.Unpickler):
    """Reads arrays, sparse and chumpy stand-ins (of Python 2 and 3, numpy 1 and 2), refuses all else."""

    _allowed = _allowed_names()

    def find_class(self, module: str, name: str) -> Any:
        """Raises pickle.UnpicklingError for a name that is not on the list."""
        try:
            return self._allowed[(module, name)]
        except KeyError:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}; only arrays are read") from None

    def load(self) -> Any:
        """The content in plain containers and numpy arrays. Raises pickle.UnpicklingError when refused."""
        return _plain(super().load())

    def persistent_load(self, pid: object) -> Any:
        """Always refused."""
        raise pickle.UnpicklingError("the pickle refers to objects outside the file")
