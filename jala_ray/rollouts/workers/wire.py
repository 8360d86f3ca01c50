"""Messages between a run and a simulator's process: a head of JSON, and the bytes of the arrays that it names.

`JSIM`, length of the head and of the body as unsigned 32 and 64 bits, the head, the body. Arrays stand in the head as `{"$": index}`.
"""

import json
import struct
from collections.abc import Callable

import numpy as np

MAGIC = b"JSIM"
PREFIX = struct.Struct("<4sIQ")
MAX_HEAD, MAX_BODY = 1 << 24, 1 << 32
KINDS = "biuf"
"""Of array types: bool, integers, floats."""


class Garbled(ValueError):
    """Bytes that are no message."""


def packed(message: dict) -> list[bytes]:
    """The parts of a message, to be written one after another."""
    arrays: list[np.ndarray] = []

    def laid(value: object) -> object:
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):
            arrays.append(np.ascontiguousarray(value).reshape(value.shape))
            return {"$": len(arrays) - 1}
        if isinstance(value, dict):
            return {str(key): laid(inner) for key, inner in value.items()}
        return [laid(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    told = laid(message)
    described = [[array.dtype.str, list(array.shape)] for array in arrays]
    head = json.dumps({"message": told, "arrays": described}).encode()
    prefix = PREFIX.pack(MAGIC, len(head), sum(array.nbytes for array in arrays))
    return [prefix, head, *(array.tobytes() for array in arrays)]


def received(take: Callable[[int], bytes]) -> dict:
    """The next message; `take(n)` gives exactly n bytes or raises. Raises `Garbled`."""
    magic, head_bytes, body_bytes = PREFIX.unpack(take(PREFIX.size))
    if magic != MAGIC or head_bytes > MAX_HEAD or body_bytes > MAX_BODY:
        raise Garbled(f"no message begins with {magic!r}")
    head, body = take(head_bytes), take(body_bytes)
    try:
        told = json.loads(head)
        arrays, place = [], 0
        for kind, shape in told["arrays"]:
            dtype = np.dtype(kind)
            count = int(np.prod(shape, dtype=np.int64))
            if dtype.kind not in KINDS or min(shape, default=0) < 0:
                raise Garbled(f"an array of {kind} {shape}")
            arrays.append(np.frombuffer(body, dtype, count, place).reshape(shape).copy())
            place += count * dtype.itemsize
        if place != body_bytes:
            raise Garbled(f"{body_bytes} bytes of arrays that need {place}")
        message = _filled(told["message"], arrays)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise Garbled(str(error)) from None
    if not isinstance(message, dict):
        raise Garbled("a message that is no object")
    return message


def _filled(value: object, arrays: list) -> object:
    if isinstance(value, dict):
        if value.keys() == {"$"}:
            return arrays[value["$"]]
        return {key: _filled(inner, arrays) for key, inner in value.items()}
    return [_filled(inner, arrays) for inner in value] if isinstance(value, list) else value
