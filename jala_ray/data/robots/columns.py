"""Columns of Parquet files as arrays of numbers, whatever their type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jala_ray.types import SIGNAL_DTYPES, ManifestError


@dataclass(frozen=True, eq=False)
class Column:
    """Values of some rows."""

    values: np.ndarray
    """(T, ...), a number alone as (T, 1)."""
    valid: np.ndarray | None = None
    """(T,) bool: there is a value and it is finite; None: for all."""

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.valid is None else self.valid.nbytes)

    def part(self, first: int, last: int) -> Column:
        """Rows `first` .. `last` - 1."""
        return Column(self.values[first:last], None if self.valid is None else self.valid[first:last])

    def dimensions(self, start: int, end: int) -> Column:
        """Some of a vector."""
        return Column(self.values[:, start:end], self.valid)

    @property
    def usable(self) -> np.ndarray:
        """(T,) bool."""
        return np.ones(len(self.values), bool) if self.valid is None else self.valid


def joined(parts: list[Column]) -> Column:
    """One after another. Raises `ManifestError` where they are of several types or shapes."""
    if len(parts) == 1:
        return parts[0]
    kinds = {(part.values.dtype.name, part.values.shape[1:]) for part in parts}
    if len(kinds) > 1:
        raise ManifestError("column", sorted(map(str, kinds)), "one type and shape in all row groups of a file")
    some = any(part.valid is not None for part in parts)
    valid = np.concatenate([part.usable for part in parts]) if some else None
    return Column(np.concatenate([part.values for part in parts]), valid)


def numbers(column: pa.ChunkedArray, field: str) -> Column:
    """Numbers, vectors or matrices of one shape; `field` is for the messages. Raises `ManifestError` for what is none."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # too large for one array
        return joined([numbers(pa.chunked_array([chunk]), field) for chunk in array.chunks])
    there = array.is_valid().to_numpy(zero_copy_only=False)
    inner = array.drop_null() if array.null_count else array
    shape = [len(inner)]
    while _is_list(inner.type):
        shape.append(_length(inner, field))
        inner = inner.flatten()
    if not (pa.types.is_integer(inner.type) or pa.types.is_floating(inner.type) or pa.types.is_boolean(inner.type)):
        raise ManifestError(field, str(array.type), f"numbers, or lists of them, of {', '.join(SIGNAL_DTYPES)}")
    return _spread(*_flat(inner, shape), there)


def _length(lists: pa.Array, field: str) -> int:
    """Of each; 0 where there are none that say it."""
    if pa.types.is_fixed_size_list(lists.type):
        return lists.type.list_size
    lengths = np.unique(pc.call_function("list_value_length", [lists]).to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise ManifestError(field, f"lists of {lengths[0]} to {lengths[-1]} values", "lists of one length")
    return int(lengths[0]) if len(lengths) else 0


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _flat(inner: pa.Array, shape: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Values of a shape that begins with the number of rows, and which rows hold only finite numbers; None: all."""
    holes = inner.is_null().to_numpy(zero_copy_only=False) if inner.null_count else None
    filled = pc.fill_null(inner, False if pa.types.is_boolean(inner.type) else 0) if inner.null_count else inner
    values = filled.to_numpy(zero_copy_only=False).reshape(shape if len(shape) > 1 else (-1, 1))
    bad = np.zeros(values.shape, bool) if holes is None else holes.reshape(values.shape).copy()
    if values.dtype.kind == "f":
        bad |= ~np.isfinite(values)
    if not bad.any():
        return values, None
    return values, ~np.any(bad.reshape(len(values), -1), axis=1)


def _spread(values: np.ndarray, valid: np.ndarray | None, there: np.ndarray) -> Column:
    """With rows of zeros where there is no value at all."""
    if there.all():
        return Column(values, valid)
    spread, whole = np.zeros((len(there), *values.shape[1:]), values.dtype), there.copy()
    spread[there] = values
    if valid is not None:
        whole[there] = valid
    return Column(spread, whole)
