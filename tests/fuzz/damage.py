"""Seeded damage to bytes that knows nothing of their meaning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_NARROW = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0xFFFFFF)
_WIDE = (
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 2,
    (1 << 32) - 1,
    1 << 32,
    (1 << 62) + 1,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)
MAGIC = (*_NARROW, *_WIDE)
"""Numbers at which widths and signs break."""


def number(rng: np.random.Generator, width: int, near: int = 0) -> int:
    """An unsigned number of `width` bytes: magic, random, or near another."""
    kind = rng.integers(4)
    if kind == 0:
        value = near + int(rng.integers(-4, 5))
    elif kind == 1:
        value = int.from_bytes(rng.bytes(width), "big")
    else:
        value = int(rng.choice(np.array(MAGIC, object)))
    return value % (1 << 8 * width)


def put_number(
    data: bytearray, rng: np.random.Generator, begin: int, end: int, width: int | None = None, order: str | None = None
) -> None:
    """Overwrite an aligned number of [begin, end)."""
    width = width or int(rng.choice([1, 2, 4, 8]))
    if end - begin < width:
        return
    place = begin + int(rng.integers((end - begin) // width)) * width
    order = order or str(rng.choice(["big", "little"]))
    near = int.from_bytes(data[place : place + width], order)  # type: ignore[arg-type]
    data[place : place + width] = number(rng, width, near).to_bytes(width, order)  # type: ignore[arg-type]


def _span(rng: np.random.Generator, begin: int, end: int, most: int = 4096) -> tuple[int, int]:
    """A stretch of [begin, end), more often short than long."""
    size = min(int(2 ** rng.uniform(0, np.log2(most))), end - begin)
    place = begin + int(rng.integers(end - begin - size + 1))
    return place, place + size


def _flip(data: bytearray, rng: np.random.Generator, begin: int, end: int) -> None:
    for _ in range(int(2 ** rng.integers(0, 6))):
        data[int(rng.integers(begin, end))] ^= 1 << int(rng.integers(8))


def _overwrite(data: bytearray, rng: np.random.Generator, begin: int, end: int) -> None:
    first, last = _span(rng, begin, end)
    data[first:last] = rng.bytes(last - first)


def _fill(data: bytearray, rng: np.random.Generator, begin: int, end: int) -> None:
    first, last = _span(rng, begin, end)
    data[first:last] = bytes([int(rng.choice([0, 0, 0xFF]))]) * (last - first)


def _copy(data: bytearray, rng: np.random.Generator, begin: int, end: int) -> None:
    first, last = _span(rng, begin, end)
    to, _ = _span(rng, begin, end, 1)
    data[to : min(end, to + last - first)] = data[first : first + min(end, to + last - first) - to]


def _swap(data: bytearray, rng: np.random.Generator, begin: int, end: int) -> None:
    size = min(int(2 ** rng.uniform(0, 10)), (end - begin) // 2)
    a = begin + int(rng.integers(end - begin - 2 * size + 1))
    b = int(rng.integers(a + size, end - size + 1))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def _magic(data: bytearray, rng: np.random.Generator, begin: int, end: int) -> None:
    for _ in range(int(2 ** rng.integers(0, 4))):
        put_number(data, rng, begin, end)


def _delete(data: bytearray, rng: np.random.Generator, begin: int, end: int) -> None:
    first, last = _span(rng, begin, end)
    del data[first:last]


def _insert(data: bytearray, rng: np.random.Generator, begin: int, end: int) -> None:
    first, last = _span(rng, begin, end)
    place = int(rng.integers(begin, end))
    data[place:place] = data[first:last] if rng.integers(2) else rng.bytes(last - first)


def _truncate(data: bytearray, rng: np.random.Generator, begin: int, end: int) -> None:
    del data[int(rng.integers(begin, end)) :]


Damage = Callable[[bytearray, np.random.Generator, int, int], None]
SAME_SIZE: dict[str, Damage] = {
    "flip bits": _flip,
    "overwrite block": _overwrite,
    "fill block": _fill,
    "copy block over": _copy,
    "swap blocks": _swap,
    "magic numbers": _magic,
}
OTHER_SIZE: dict[str, Damage] = {"delete block": _delete, "insert block": _insert, "truncate": _truncate}
DAMAGE = SAME_SIZE | OTHER_SIZE
"""name -> change of `data` in place, within [begin, end) (at least one byte)."""


def damaged(data: bytes, rng: np.random.Generator, kind: str, begin: int = 0, end: int | None = None) -> bytes:
    """`data` with damage of one kind, once or a few times, in [begin, end)."""
    changed = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        last = min(len(changed), len(data) if end is None else end)
        if last > begin:
            DAMAGE[kind](changed, rng, begin, last)
    return bytes(changed)
