"""One manifest row: its columns, and the way between a row and a `Clip`. See docs/manifest.md."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pyarrow as pa

from jala_ray.data.manifest.places import resolve_uri
from jala_ray.data.manifest.signals import (
    SIGNALS,
    VIEWS,
    row_to_signals,
    row_to_views,
    signal_names,
    signals_to_row,
    views_to_row,
)
from jala_ray.data.manifest.validation import DURATION_SLACK, STATES
from jala_ray.domains import DOMAIN_KINDS
from jala_ray.hands.validity import labelled_chunks
from jala_ray.tasks import TASKS
from jala_ray.types import (
    HAND_NAMES,
    MAX_CLIP_SECONDS,
    SPLITS,
    Camera,
    Clip,
    HandState,
    HandTrack,
    ManifestError,
    PacketIndex,
)

SCHEMA_VERSION = "3"
READ_VERSIONS = ("2", "3")
"""Version 2 had no signals and no views; its files are read as rows without any."""
VERSION_KEY = b"jala_ray.manifest.version"

_FLOATS = pa.list_(pa.float32())
_BOOLS = pa.list_(pa.bool_())
_STREAM = ("codec", "width", "height", "time_base", "pixel_aspect", "turns", "color", "file_size")
_WHOLE = {"width": (1, 2**16), "height": (1, 2**16), "turns": (0, 3), "file_size": (1, 2**62)}
_PAIRS = {"time_base": (1, 2**31 - 1), "color": (0, 255)}
"""Least and largest values of what a packet index says of its stream; both of a pair."""
MAX_PIXEL_ASPECT = 1000.0
_CAMERA = {name: pa.float64() for name in ("fx", "fy", "cx", "cy")} | {
    "width": pa.int32(),
    "height": pa.int32(),
}
_HAND = {
    "state": pa.string(),
    "confidence": pa.float32(),
    "valid": _BOOLS,
    "theta": _FLOATS,
    "rot": _FLOATS,
    "wrist": _FLOATS,
    "beta": _FLOATS,
}
_PACKETS = {"offset": pa.int64(), "size": pa.int32(), "pts": pa.int64(), "key": pa.bool_(), "boundary": pa.int32()}
_BASE_FIELDS = [
    *((name, pa.string()) for name in ("clip_id", "source", "domain", "split", "task_type", "video_uri")),
    *((name, pa.float64()) for name in ("start_s", "end_s", "fps", "time_scale")),
    ("instructions", pa.list_(pa.string())),
    ("description", pa.string()),
    *((f"camera_{name}", kind) for name, kind in _CAMERA.items()),
    ("pose_time_s", _FLOATS),
    ("extrinsics", _FLOATS),
    *((f"{side}_{name}", kind) for side in HAND_NAMES for name, kind in _HAND.items()),
    ("packet_stream", pa.string()),
    ("packet_extradata", pa.binary()),
    *((f"packet_{name}", pa.list_(kind)) for name, kind in _PACKETS.items()),
    ("signals", SIGNALS),
    ("views", VIEWS),
]
_DERIVED_FIELDS = [
    ("n_chunks", pa.int16()),
    *((f"{side}_labelled", _BOOLS) for side in HAND_NAMES),
    ("signal_names", pa.list_(pa.string())),
]
SCHEMA = pa.schema(
    [pa.field(name, kind) for name, kind in _BASE_FIELDS + _DERIVED_FIELDS],
    metadata={VERSION_KEY: SCHEMA_VERSION.encode()},
)
"""Every column of a row, in order, with the version in its metadata."""
BASE_SCHEMA = pa.schema([pa.field(name, kind) for name, kind in _BASE_FIELDS])
SINCE_3 = ("signals", "views", "signal_names")
"""Columns that version 2 lacks."""
SCHEMA_2 = pa.schema([field for field in SCHEMA if field.name not in SINCE_3], metadata={VERSION_KEY: b"2"})
INDEX_COLUMNS = (
    *("clip_id", "source", "domain", "split", "task_type", "start_s", "end_s", "fps", "time_scale"),
    *("n_chunks", "left_state", "right_state", "left_labelled", "right_labelled", "video_uri", "signal_names"),
)
INDEX_SCHEMA = pa.schema(
    [SCHEMA.field(name) for name in INDEX_COLUMNS]
    + [pa.field("row_offset", pa.int64()), pa.field("row_size", pa.int32()), pa.field("row_crc", pa.uint32())],
    metadata=SCHEMA.metadata,
)
"""Columns of the Parquet files: what planning needs of each row, and where the whole row lies (`rowfile.py`)."""


def clip_id(source: str, video: str, start_s: float, end_s: float, *extra: str) -> str:
    """Deterministic id of a clip: 16 hex digits of BLAKE2b over its canonical description.

    `video` is a name that stays the same on every machine (relative path or episode name), not a local path.
    Times count to the microsecond. `extra` tells apart clips of one span (a subject, an annotation's number).
    """
    canonical = json.dumps([source, video, f"{start_s:.6f}", f"{end_s:.6f}", *extra], ensure_ascii=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def clip_to_row(clip: Clip) -> dict[str, Any]:
    """The manifest row of a well-formed clip: scalars, strings, flat numpy arrays, by column of `SCHEMA`."""
    return base_row(clip) | derived_row(clip)


def row_to_clip(row: Mapping[str, Any], base: str | None = None) -> Clip:
    """The clip of a manifest row (a dict of scalars and arrays or lists, as `clip_to_row` or Ray Data gives).

    `base`: the manifest's folder; a relative `video_uri` is resolved against it. Raises `ManifestError` with the column and its
    value where the row could not become a clip or would become a wrong one; `validate` knows more rules.
    """
    start_s, end_s = _number(row, "start_s"), _number(row, "end_s")
    fps, time_scale = _number(row, "fps", positive=True), _number(row, "time_scale", positive=True)
    seconds = (end_s - start_s) / time_scale
    slack = min(DURATION_SLACK / fps / time_scale, MAX_CLIP_SECONDS)  # a nonsense rate must not excuse hours
    if not 0 < seconds <= MAX_CLIP_SECONDS + slack:
        expected = f"later than start_s by at most {MAX_CLIP_SECONDS:g} s of model time"
        raise ManifestError("end_s", f"{end_s:g} ({seconds:.3f} s of model time)", expected)
    pose_time_s = _array(row, "pose_time_s")
    frames = len(pose_time_s)
    extrinsics = _array(row, "extrinsics")
    if len(extrinsics) not in (0, 12 * frames):
        raise ManifestError("extrinsics", f"{len(extrinsics)} values", f"none, or 12 for each of {frames} pose frames")
    left, right = (_row_to_hand(row, side, frames) for side in HAND_NAMES)
    return Clip(
        clip_id=_text(row, "clip_id"),
        source=_text(row, "source"),
        domain=_choice(row, "domain", DOMAIN_KINDS),
        split=_choice(row, "split", SPLITS),
        task_type=_choice(row, "task_type", TASKS),
        video_uri=video_address(row, base),
        start_s=start_s,
        end_s=end_s,
        fps=fps,
        time_scale=time_scale,
        instructions=_instructions(row),
        description=_text(row, "description"),
        camera=_camera(row),
        pose_time_s=pose_time_s,
        hands=(left, right),
        extrinsics=extrinsics.reshape(-1, 3, 4),
        packets=_row_to_packets(row),
        signals=row_to_signals(row["signals"]),
        views=row_to_views(row["views"], base),
    )


def video_address(row: Mapping[str, Any], base: str | None) -> str | None:
    """Where the video of a row lies. Raises `ManifestError` for what can be no address."""
    if row["video_uri"] is None:
        return None
    uri = _address(row, "video_uri")
    return uri if base is None else resolve_uri(uri, base)


def base_row(clip: Clip) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(clip, name) for name in SCHEMA.names[:10]}
    row |= {"instructions": list(clip.instructions), "description": clip.description}
    row |= {f"camera_{name}": clip.camera and getattr(clip.camera, name) for name in _CAMERA}
    row |= {name: _flat(getattr(clip, name), np.float32) for name in ("pose_time_s", "extrinsics")}
    for side, hand in zip(HAND_NAMES, clip.hands, strict=True):
        state = hand.state.name.lower() if isinstance(hand.state, HandState) else str(hand.state)
        row |= {f"{side}_state": state, f"{side}_confidence": float(hand.confidence)}
        row[f"{side}_valid"] = _flat(hand.valid, np.bool_)
        row |= {f"{side}_{name}": _flat(getattr(hand, name), np.float32) for name in list(_HAND)[3:]}
    packets = clip.packets
    row["packet_stream"] = json.dumps({name: getattr(packets, name) for name in _STREAM}) if packets else ""
    row["packet_extradata"] = packets.extradata if packets else b""
    for name, kind in _PACKETS.items():
        row[f"packet_{name}"] = _flat(getattr(packets, name) if packets else [], kind.to_pandas_dtype())
    return row | {"signals": signals_to_row(clip.signals), "views": views_to_row(clip.views)}


def derived_row(clip: Clip) -> dict[str, Any]:
    labelled = labelled_chunks(clip)
    sides = {f"{side}_labelled": labelled[i] for i, side in enumerate(HAND_NAMES)}
    return {"n_chunks": clip.n_chunks, **sides, "signal_names": signal_names(clip)}


def _flat(values: Any, dtype: type) -> np.ndarray:
    return np.ascontiguousarray(values, dtype).reshape(-1)


def _row_to_hand(row: Mapping[str, Any], side: str, frames: int) -> HandTrack:
    state = HandState[_choice(row, f"{side}_state", STATES).upper()]
    poses = frames if state is HandState.LABELLED else 0
    beta = _array(row, f"{side}_beta")
    if state is HandState.LABELLED and len(beta) != 10:
        raise ManifestError(f"{side}_beta", f"{len(beta)} values", "10 values")
    return HandTrack(
        state=state,
        valid=_array(row, f"{side}_valid", np.bool_, poses),
        theta=_array(row, f"{side}_theta", np.float32, 45 * poses).reshape(-1, 15, 3),
        rot=_array(row, f"{side}_rot", np.float32, 3 * poses).reshape(-1, 3),
        wrist=_array(row, f"{side}_wrist", np.float32, 3 * poses).reshape(-1, 3),
        beta=beta,
        confidence=_number(row, f"{side}_confidence"),
    )


def _row_to_packets(row: Mapping[str, Any]) -> PacketIndex | None:
    if not row["packet_stream"]:
        return None
    stream = packet_stream(_text(row, "packet_stream"))
    extradata = row["packet_extradata"]
    if not isinstance(extradata, bytes):
        raise ManifestError("packet_extradata", extradata, "bytes")
    arrays: dict[str, Any] = {name: _whole_numbers(row, f"packet_{name}", kind) for name, kind in _PACKETS.items()}
    index = PacketIndex(extradata=extradata, **stream, **arrays)
    count = len(index.offset)
    lengths = {len(index.size), len(index.pts), len(index.key), count}
    if len(lengths) > 1 or not count or not index.key[0]:
        raise ManifestError(
            "packet_offset", f"{sorted(lengths)} packets", "equally many of everything, a keyframe first"
        )
    if (index.size <= 0).any() or (index.offset < 0).any() or (index.offset > index.file_size - index.size).any():
        raise ManifestError("packet_offset", "packets elsewhere", f"all within the video's {index.file_size} bytes")
    if not len(index.boundary) or index.boundary.min() < 0 or index.boundary.max() >= count:
        raise ManifestError("packet_boundary", index.boundary.tolist(), f"places in 0..{count - 1}")
    return index


def packet_stream(text: str) -> dict[str, Any]:
    """Fields of a packet index from their JSON, each checked: what decoders are told must not surprise them."""
    try:
        facts = json.loads(text)
        stream: dict[str, Any] = {name: facts[name] for name in _STREAM}
        whole = [(stream[name], bounds) for name, bounds in _WHOLE.items()]
        for name, bounds in _PAIRS.items():
            first, second = stream[name]
            stream[name] = (first, second)
            whole += [(first, bounds), (second, bounds)]
        aspect = float(stream["pixel_aspect"])
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise ManifestError("packet_stream", text, f"JSON with {', '.join(_STREAM)}", f"{error!r}") from error
    right = all(type(value) is int and low <= value <= high for value, (low, high) in whole)
    if not right or not isinstance(stream["codec"], str) or not 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT:
        raise ManifestError("packet_stream", text, "a codec's name, and numbers that a video can have")
    return stream


def _whole_numbers(row: Mapping[str, Any], name: str, kind: pa.DataType) -> np.ndarray:
    """A list column of whole numbers or truth values as its own (L,) array."""
    values = np.asarray(row[name] if row[name] is not None else [None])
    numbers = values.astype(kind.to_pandas_dtype()) if values.dtype.kind in "iub" or not len(values) else None
    if numbers is None or not np.array_equal(numbers, values):
        raise ManifestError(name, row[name], f"a list of {kind} without nulls")
    return numbers


def _camera(row: Mapping[str, Any]) -> Camera | None:
    names = [f"camera_{name}" for name in _CAMERA]
    if all(row[name] is None or np.isnan(row[name]) for name in names):  # pandas turns null into NaN
        return None
    fx, fy, cx, cy, width, height = (_number(row, n, positive=n not in ("camera_cx", "camera_cy")) for n in names)
    return Camera(fx, fy, cx, cy, int(width), int(height))


def _instructions(row: Mapping[str, Any]) -> tuple[str, ...]:
    texts = row["instructions"]
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise ManifestError("instructions", texts, "a list of texts")
    return tuple(str(text) for text in texts)


def _text(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row[name], str):
        raise ManifestError(name, row[name], "a text")
    return row[name]


def _address(row: Mapping[str, Any], name: str) -> str:
    address = _text(row, name)
    if "\0" in address:
        raise ManifestError(name, address, "a path or s3:// address")
    return address


def _choice(row: Mapping[str, Any], name: str, choices: Collection[str]) -> Any:
    if row[name] not in choices:
        raise ManifestError(name, row[name], f"one of {', '.join(choices)}")
    return row[name]


def _number(row: Mapping[str, Any], name: str, positive: bool = False) -> float:
    value = row[name]
    if not isinstance(value, Real) or not math.isfinite(value) or (positive and value <= 0):
        raise ManifestError(name, value, "a finite number > 0" if positive else "a finite number")
    return float(value)


def _array(row: Mapping[str, Any], name: str, dtype: type = np.float32, length: int | None = None) -> np.ndarray:
    """A list column as its own (L,) array, all finite; of `length` if given."""
    if row[name] is None:
        raise ManifestError(name, None, "a list")
    values = np.array(row[name], dtype)
    if length is not None and len(values) != length:
        raise ManifestError(name, f"{len(values)} values", f"{length}, by its hand's state and the pose times")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ManifestError(f"{name}[{bad[0]}]", float(values[bad[0]]), "finite numbers")
    return values


def rows_to_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as dicts -> table. Numeric lists are joined as arrays, which is far faster than value by value."""
    columns = []
    for field in schema:
        values = [row[field.name] for row in rows]
        if pa.types.is_list(field.type) and all(isinstance(value, np.ndarray) for value in values):
            offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
            flat = pa.array(np.concatenate(values), field.type.value_type)
            columns.append(pa.ListArray.from_arrays(pa.array(offsets), flat))
        else:
            columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def as_version_3(table: pa.Table) -> pa.Table:
    """Rows of version 2 with what it lacks: no signals, no views. Others as they are."""
    if all(name in table.column_names for name in SINCE_3):
        return table
    return with_empty(table, SINCE_3).select(SCHEMA.names).replace_schema_metadata(SCHEMA.metadata)


def with_empty(table: pa.Table, names: Iterable[str]) -> pa.Table:
    """The table with those of the list columns `names` that it lacks, empty in every row."""
    for name in names:
        if name not in table.column_names:
            table = table.append_column(SCHEMA.field(name), pa.array([[]] * len(table), SCHEMA.field(name).type))
    return table


def table_row(table: pa.Table, i: int) -> dict[str, Any]:
    """A row by column: scalars, strings, numpy arrays for lists of numbers."""
    row = {}
    for name in table.column_names:
        scalar = table[name][i]
        if isinstance(scalar, pa.ListScalar) and scalar.is_valid and pa.types.is_primitive(scalar.type.value_type):
            row[name] = scalar.values.to_numpy(zero_copy_only=False)
        else:
            row[name] = scalar.as_py()
    return row


def check_schema(schema: pa.Schema, file: str) -> None:
    version = (schema.metadata or {}).get(VERSION_KEY)
    if version is None:
        raise ManifestError(
            f"{file}: metadata {VERSION_KEY.decode()}",
            None,
            f"schema version {SCHEMA_VERSION}",
            "This Parquet file is no manifest: build one with write_manifest or `jala convert`.",
        )
    if version.decode(errors="replace") not in READ_VERSIONS:
        raise ManifestError(
            f"{file}: schema version",
            version.decode(errors="replace"),
            f"version {' or '.join(READ_VERSIONS)}",
            "Convert the source again with this version of jala_ray.",
        )
    for wanted in INDEX_SCHEMA:
        if wanted.name in SINCE_3 and version == b"2":
            continue
        index = schema.get_field_index(wanted.name)
        found = schema.field(index).type if index >= 0 else None
        if found is None or not _same_type(found, wanted.type):
            raise ManifestError(f"{file}: column {wanted.name}", found and str(found), f"type {wanted.type}")


def _same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_list(wanted):
        return pa.types.is_list(found) and found.value_type == wanted.value_type
    return found == wanted
