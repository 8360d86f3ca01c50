"""Records as bytes: one safetensors buffer for many clips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jala_ray.evaluation.records import ClipRecord, HandRecord
from jala_ray.types import CheckpointError, Hand

FORMAT = "jala_ray.records/1"
_PLAIN = tuple(f.name for f in fields(ClipRecord) if f.name != "hands")


def to_bytes(records: Sequence[ClipRecord]) -> bytes:
    """One buffer: arrays under "CLIP/HAND/valid", "CLIP/HAND/true", "CLIP/HAND/predicted/ROW"; everything else in the header."""
    tensors: dict[str, np.ndarray] = {}
    clips: list[dict[str, Any]] = []
    for i, record in enumerate(records):
        clips.append({name: getattr(record, name) for name in _PLAIN} | {"hands": [int(h.hand) for h in record.hands]})
        for hand in record.hands:
            at = f"{i}/{int(hand.hand)}"
            tensors[f"{at}/valid"], tensors[f"{at}/true"] = hand.valid, hand.true
            tensors |= {f"{at}/predicted/{row}": joints for row, joints in hand.predicted.items()}
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    return safetensors.numpy.save(tensors, {"format": FORMAT, "clips": json.dumps(clips)})


def from_bytes(payload: bytes) -> list[ClipRecord]:
    """The inverse. Raises `CheckpointError` for anything else."""
    try:
        tensors = safetensors.numpy.load(payload)
        length = int.from_bytes(payload[:8], "little")
        header = json.loads(payload[8 : 8 + length])["__metadata__"]
        if header["format"] != FORMAT:
            raise KeyError(header["format"])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError("records", str(error), FORMAT, "Delete the file and evaluate again.") from error
    parts: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        clip, hand, rest = name.split("/", 2)
        parts.setdefault((int(clip), int(hand)), {})[rest] = array
    records = []
    for i, facts in enumerate(json.loads(header["clips"])):
        hands = tuple(_hand(Hand(hand), parts[i, hand]) for hand in facts.pop("hands"))
        records.append(ClipRecord(**facts | {"hands": hands, "cut": tuple(facts.get("cut", ()))}))
    return records


def _hand(hand: Hand, arrays: dict[str, np.ndarray]) -> HandRecord:
    rows = {name.removeprefix("predicted/"): a for name, a in arrays.items() if name.startswith("predicted/")}
    return HandRecord(hand, arrays["valid"], arrays["true"], rows)
