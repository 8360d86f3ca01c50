"""One rank's micro-batches of one training step, and the bytes as which they travel."""

from __future__ import annotations

import json
import struct
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jala_ray.batch import Batch
from jala_ray.types import UserError


@dataclass
class StepShare:
    """What one rank trains on in one step."""

    step: int
    micro: list[Batch]
    """Never empty. Ranks may have different numbers of them: gradients are reduced once per step."""
    rows: int
    """Plan rows asked for."""
    errors: list[dict[str, Any]] = field(default_factory=list)
    """Quarantined rows: clip_id, step, epoch, plan_row, field, reason."""

    def parcel(self) -> Parcel:
        """Ready to be written into a buffer. Raises `UserError` where it would not fit one cell of Arrow."""
        facts = {"step": self.step, "rows": self.rows, "errors": self.errors, "micro": len(self.micro)}
        tensors = {
            f"{i}/{name}": t.contiguous() for i, batch in enumerate(self.micro) for name, t in batch.tensors().items()
        }
        tensors["facts"] = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
        made = Parcel.of(tensors)
        if made.nbytes > MAX_SHARE_BYTES:
            remedy = "Take a smaller train.batch or more workers."
            raise UserError("a rank's share of a step", f"{made.nbytes / 2**30:.1f} GiB", "less than 2 GiB", remedy)
        return made

    @classmethod
    def from_buffer(cls, payload: bytes | bytearray | memoryview) -> StepShare:
        """The share of a parcel, its tensors views of the buffer, which is not copied. They must not be written to.

        Raises `UserError` for batches with other columns than this version's.
        """
        view = memoryview(payload)
        (length,) = struct.unpack_from("<Q", view)
        header = json.loads(bytes(view[8 : 8 + length]))
        header.pop("__metadata__", None)
        body = view[8 + length :]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            tensors = {name: _tensor(body, entry) for name, entry in header.items()}
        facts = json.loads(bytes(tensors.pop("facts").numpy()))
        micro: list[dict[str, Tensor]] = [{} for _ in range(facts["micro"])]
        for key, tensor in tensors.items():
            i, name = key.split("/", 1)
            micro[int(i)][name] = tensor
        return cls(facts["step"], [Batch.from_tensors(columns) for columns in micro], facts["rows"], facts["errors"])


@dataclass(frozen=True)
class Parcel:
    """Tensors in safetensors' form, written in one go to where they are wanted: a share is tens of megabytes, and every copy shows."""

    header: bytes
    tensors: list[Tensor]
    """Widest elements first, so that all are aligned."""
    nbytes: int
    """A multiple of `ALIGNED`."""

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Parcel:
        ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
        entries, at = {}, 0
        for name, tensor in ordered:
            entries[name] = {
                "dtype": _dtype_name(name, tensor.dtype),
                "shape": list(tensor.shape),
                "data_offsets": [at, at + tensor.nbytes],
            }
            at += tensor.nbytes
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNED)
        header = struct.pack("<Q", len(text)) + text
        whole = len(header) + at
        return cls(header, [tensor for _, tensor in ordered], whole + -whole % ALIGNED)

    def write(self, out: np.ndarray) -> None:
        """Into the first `nbytes` of a uint8 array."""
        out[: len(self.header)] = np.frombuffer(self.header, np.uint8)
        at = len(self.header)
        for tensor in self.tensors:
            if tensor.nbytes:
                out[at : at + tensor.nbytes] = tensor.reshape(-1).view(torch.uint8).numpy()
                at += tensor.nbytes
        out[at : self.nbytes] = 0

    def tensor(self) -> Tensor:
        """(nbytes,) uint8, in memory that processes share."""
        out = torch.empty(self.nbytes, dtype=torch.uint8).share_memory_()
        self.write(out.numpy())
        return out


MAX_SHARE_BYTES = 2**31 - 2**20
ALIGNED = 64
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""By the name that safetensors gives each."""
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def _dtype_name(tensor: str, dtype: torch.dtype) -> str:
    if dtype not in _NAMES:
        raise UserError(f"dtype of {tensor}", dtype, f"one of {', '.join(map(str, _NAMES))}")
    return _NAMES[dtype]


def _tensor(body: memoryview, entry: dict[str, Any]) -> Tensor:
    """A view of one tensor of a safetensors buffer."""
    begin, end = entry["data_offsets"]
    dtype = _DTYPES[entry["dtype"]]
    if begin == end:
        return torch.zeros(entry["shape"], dtype=dtype)
    return torch.frombuffer(body[begin:end], dtype=dtype).reshape(entry["shape"])
