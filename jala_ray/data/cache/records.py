"""One record of a cache (`folder.py`): all of a row but its pictures, as safetensors, readable by one ranged read."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.numpy

from jala_ray import storage
from jala_ray.data.manifest.places import RowAddress, resolve_uri, stored_uri
from jala_ray.data.samples.source import Sample
from jala_ray.storage import StorageOptions
from jala_ray.types import Clip, HandState, HandTrack, ManifestError, PacketIndex, SideView, Signal


@dataclass
class CachedSample(Sample):
    """A sample with what is stored of its pictures: pieces one after another in `arrays`.

    The first piece is the first picture, where that is stored; then come the features of boundaries 0..N or, of pairs, for each
    t = 0..N-1 those of (v_t, v_t) and of (v_t, v_{t+delta}).
    """

    arrays: str = ""
    """Address of the part's file."""
    at: int = 0
    """Byte at which the first piece begins."""
    crc: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32))
    """(pieces,) uint32 CRC-32 of each piece; empty where nothing is stored."""


_SPAN = ("source", "domain", "split", "start_s", "end_s", "fps", "time_scale")
_PACKETS = ("offset", "size", "pts", "key", "boundary")
_STREAM = tuple(f.name for f in dataclasses.fields(PacketIndex) if f.name not in (*_PACKETS, "extradata"))


def pack_record(sample: Sample, base: str, at: int, crc: Sequence[int]) -> bytes:
    """The stored form of a sample that has its clip; videos are named as a manifest in folder `base` names them."""
    clip = sample.clip
    assert clip is not None and clip.video_uri is not None
    facts = {name: getattr(sample, name) for name in ("clip_id", "task", "description", "seconds")}
    facts |= {"states": [int(state) for state in sample.states], "instructions": list(sample.instructions)}
    facts |= {name: getattr(clip, name) for name in _SPAN}
    facts |= {"video": stored_uri(clip.video_uri, base), "at": at, "stream": None}
    codes = sample.codes.astype(np.uint16)
    if not np.array_equal(codes, sample.codes):
        raise ManifestError("motion ids", int(sample.codes.max()), "ids below 65536")
    arrays = {"codes": codes, "labelled": sample.labelled, "crc": np.array(crc, np.uint32)}
    if clip.packets is not None:
        facts["stream"] = {name: getattr(clip.packets, name) for name in _STREAM}
        arrays |= {f"packet_{name}": getattr(clip.packets, name) for name in _PACKETS}
        arrays["extradata"] = np.frombuffer(clip.packets.extradata, np.uint8)
    facts |= {"signals": sorted(sample.signals)} if sample.signals else {}
    for number, name in enumerate(sorted(sample.signals)):
        signal = sample.signals[name]
        arrays |= {f"signal_{number}": np.asarray(signal.values), f"signal_{number}_time_s": np.asarray(signal.time_s)}
        arrays |= {} if signal.valid is None else {f"signal_{number}_valid": np.asarray(signal.valid, bool)}
    if clip.views:
        views = {name: (stored_uri(view.video_uri, base), view.start_s) for name, view in clip.views.items()}
        facts["views"] = views
    arrays["facts"] = json_array(facts)
    return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def unpack_record(payload: bytes, row: int, base: str, arrays: str) -> CachedSample:
    """The sample of a record whose bytes are those that were written (`fetch_record` sees to it)."""
    stored = safetensors.numpy.load(payload)
    facts = json.loads(stored["facts"].tobytes())
    left, right = (HandState(state) for state in facts["states"])
    clip = Clip(
        clip_id=facts["clip_id"],
        task_type=facts["task"],
        video_uri=resolve_uri(facts["video"], base),
        instructions=facts["instructions"],
        description=facts["description"],
        camera=None,
        pose_time_s=np.zeros(0, np.float32),
        hands=(HandTrack(left), HandTrack(right)),  # poses are in the codes
        packets=_packets(facts["stream"], stored),
        signals=_signals(facts.get("signals", ()), stored),
        views={name: SideView(resolve_uri(uri, base), start) for name, (uri, start) in facts.get("views", {}).items()},
        **{name: facts[name] for name in _SPAN},
    )
    return CachedSample(
        *(clip.clip_id, clip.task_type, (left, right), stored["labelled"], stored["codes"].astype(np.int64)),
        *(clip.instructions, clip.description, facts["seconds"], row, clip, clip.signals),
        arrays=arrays,
        at=facts["at"],
        crc=stored["crc"],
    )


def _signals(names: Sequence[str], stored: Mapping[str, np.ndarray]) -> dict[str, Signal]:
    """In the order in which they were stored."""
    found = {}
    for number, name in enumerate(names):
        key = f"signal_{number}"
        found[name] = Signal(stored[key], stored[f"{key}_time_s"], stored.get(f"{key}_valid"))
    return found


def _packets(stream: dict[str, Any] | None, stored: Mapping[str, np.ndarray]) -> PacketIndex | None:
    if stream is None:
        return None
    stream |= {name: (int(stream[name][0]), int(stream[name][1])) for name in ("time_base", "color")}
    arrays: dict[str, Any] = {name: stored[f"packet_{name}"] for name in _PACKETS}
    return PacketIndex(extradata=stored["extradata"].tobytes(), **stream, **arrays)


def fetch_record(address: RowAddress, options: StorageOptions | None = None) -> bytes:
    """Raises `StorageError`, and `ManifestError` where the bytes are not those that were written."""
    payload = storage.read_range(address.file, address.offset, address.offset + address.size, options)
    if zlib.crc32(payload) != address.crc:
        raise damaged(f"record at byte {address.offset} of {address.file}")
    return payload


def damaged(place: str) -> ManifestError:
    remedy = "Delete that part's folder and run `jala cache` again."
    return ManifestError(place, "other bytes", "those that were written", remedy)


def json_array(value: Any) -> np.ndarray:
    """JSON as (n,) uint8, to lie among arrays."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)
