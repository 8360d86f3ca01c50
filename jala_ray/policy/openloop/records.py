"""What is known of an episode once a policy was asked, and its bytes: one safetensors buffer for some episodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jala_ray.types import CheckpointError

FORMAT = "jala_ray.openloop/1"
POLICY, BLIND, SWAPPED, DEAF, STATELESS = "policy", "blind", "swapped", "deaf", "stateless"
ASKED: Mapping[str, str] = {
    POLICY: "as recorded",
    BLIND: "all pictures black",
    SWAPPED: "another episode's pictures",
    DEAF: "another task's words",
    STATELESS: "the state at its mean",
}
"""How the policy is asked, and what differs from the recording."""


@dataclass(frozen=True, eq=False)
class ShownPicture:
    """A picture, as the model is shown it where the policy tells, else as recorded."""

    camera: str
    time_s: float
    """After the episode's beginning."""
    jpeg: np.ndarray
    """(n,) uint8: a file's bytes."""


@dataclass(frozen=True, eq=False)
class EpisodeRecord:
    """n moments of an episode, with answers of H actions of A numbers, in the robot's units."""

    set: str
    number: int
    """LeRobot's."""
    failure: str | None = None
    """Why it could not be read; it then has no arrays."""
    every: int = 1
    """Actions from a moment to the next."""
    rate_hz: float = 1.0
    action: tuple[tuple[str, int], ...] = ()
    """(signal, width), one after another."""
    tasks: tuple[str, ...] = ()
    seen: tuple[ShownPicture, ...] = ()
    """At some moments."""
    times_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    truth: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)))
    there: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool))
    last: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    held: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """(n, A) the state, where it is as wide as an action; else (n, 0)."""
    predicted: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(n, H, A) float32 by how the policy was asked; without what has no meaning for it."""


_ARRAYS = ("times_s", "truth", "there", "last", "held")
_PLAIN = tuple(f.name for f in fields(EpisodeRecord) if f.name not in (*_ARRAYS, "predicted", "seen"))


def to_bytes(records: Sequence[EpisodeRecord]) -> bytes:
    tensors, plain = dict[str, np.ndarray](), list[dict[str, Any]]()
    for i, record in enumerate(records):
        shown = [(one.camera, one.time_s) for one in record.seen]
        plain.append({name: getattr(record, name) for name in _PLAIN} | {"seen": shown})
        arrays = {name: getattr(record, name) for name in _ARRAYS}
        arrays |= {f"predicted/{name}": array for name, array in record.predicted.items()}
        arrays |= {f"seen/{j}": one.jpeg for j, one in enumerate(record.seen)}
        tensors |= {f"{i}/{name}": np.ascontiguousarray(array) for name, array in arrays.items()}
    return safetensors.numpy.save(tensors, {"format": FORMAT, "episodes": json.dumps(plain)})


def from_bytes(payload: bytes) -> list[EpisodeRecord]:
    """The inverse. Raises `CheckpointError` for anything else."""
    try:
        tensors = safetensors.numpy.load(payload)
        header = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])["__metadata__"]
        if header["format"] != FORMAT:
            raise KeyError(header["format"])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError("records", str(error), FORMAT, "Delete the file and run the command again.") from error
    found = []
    for i, facts in enumerate(json.loads(header["episodes"])):
        facts |= {"action": tuple(map(tuple, facts["action"])), "tasks": tuple(facts["tasks"])}
        shown = enumerate(facts["seen"])
        facts["seen"] = tuple(ShownPicture(camera, time, tensors[f"{i}/seen/{j}"]) for j, (camera, time) in shown)
        arrays: dict[str, Any] = {name: tensors[f"{i}/{name}"] for name in _ARRAYS}
        begin = f"{i}/predicted/"
        predicted = {name.removeprefix(begin): array for name, array in tensors.items() if name.startswith(begin)}
        found.append(EpisodeRecord(**facts, **arrays, predicted=predicted))
    return found
