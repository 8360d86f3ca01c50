"""Signals and side views of a manifest row: their columns, the way between them and a `Clip`, and their rules. See docs/manifest.md.

Columns are lists of structs, one for each name, so that a row can hold what no schema of ours foresaw. Values are bytes, little-endian, in
C order, so that every dtype stays what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jala_ray.data.manifest.places import resolve_uri
from jala_ray.types import SIGNAL_DTYPES, Clip, ManifestError, SideView, Signal

SIGNALS = pa.list_(
    pa.struct(
        [
            ("name", pa.string()),
            ("dtype", pa.string()),
            ("shape", pa.list_(pa.int32())),
            ("time_s", pa.list_(pa.float64())),
            ("valid", pa.list_(pa.bool_())),
            ("values", pa.binary()),
        ]
    )
)
"""`shape` is of one value; `valid` is empty where all are."""
VIEWS = pa.list_(pa.struct([("name", pa.string()), ("video_uri", pa.string()), ("start_s", pa.float64())]))
NAME = re.compile(r"[a-z][a-z0-9_.]{0,63}")
EXPECTED_NAME = "a name of small letters, digits, _ and ., once in the row"
MAX_DIMS = 8

Found = tuple[str, object, str]
"""A broken rule: field, value, what was expected."""


def signals_to_row(signals: Mapping[str, Signal]) -> list[dict[str, Any]]:
    """The cell of a clip's signals, by name. What is no signal is stored as it is and found by the rules."""
    return [_stored(name, signals[name]) for name in sorted(signals)]


def _stored(name: str, signal: Signal) -> dict[str, Any]:
    values = np.asarray(signal.values)
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return {
        "name": name,
        "dtype": values.dtype.name,
        "shape": list(values.shape[1:]),
        "time_s": np.asarray(signal.time_s, np.float64).tolist(),
        "valid": [] if signal.valid is None else np.asarray(signal.valid, bool).tolist(),
        "values": np.ascontiguousarray(little).tobytes(),
    }


def row_to_signals(cell: Sequence[Mapping[str, Any]] | None) -> dict[str, Signal]:
    """The signals of a cell. Raises `ManifestError` for the first broken rule that would make it another signal, or none."""
    for field, value, expected in signal_faults(cell):
        raise ManifestError(field, value, expected)
    return {entry["name"]: _signal(entry) for entry in cell or ()}


def _signal(entry: Mapping[str, Any]) -> Signal:
    dtype = np.dtype(entry["dtype"]).newbyteorder("<")
    values = np.frombuffer(entry["values"], dtype).reshape(-1, *entry["shape"])
    valid = np.array(entry["valid"], bool) if entry["valid"] else None
    return Signal(values.astype(dtype.newbyteorder("="), copy=False), np.array(entry["time_s"], np.float64), valid)


def signal_faults(cell: Sequence[Mapping[str, Any]] | None, span: tuple[float, float] | None = None) -> Iterator[Found]:
    """Broken rules of a row's signals. `span`: seconds of the clip and how far times may lie outside; None: times may lie anywhere."""
    if cell is None:
        yield "signals", None, "a list"
        return
    names: set[str] = set()
    for entry in cell:
        name = entry["name"]
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in names:
            yield "signals.name", name, EXPECTED_NAME
            continue
        names.add(name)
        yield from ((f"signals.{name}.{field}", value, expected) for field, value, expected in _faults(entry, span))


def _faults(entry: Mapping[str, Any], span: tuple[float, float] | None) -> Iterator[Found]:
    if entry["dtype"] not in SIGNAL_DTYPES:
        yield "dtype", entry["dtype"], f"one of {', '.join(SIGNAL_DTYPES)}"
        return
    shape, times, valid = entry["shape"], np.array(entry["time_s"] or (), np.float64), entry["valid"]
    if shape is None or len(shape) > MAX_DIMS or not all(isinstance(side, int) and side > 0 for side in shape):
        yield "shape", shape, f"at most {MAX_DIMS} numbers >= 1"
        return
    if not len(times):
        yield "time_s", entry["time_s"], "the times of one value at least"
        return
    size = len(times) * int(np.prod(shape)) * np.dtype(entry["dtype"]).itemsize
    if not isinstance(entry["values"], bytes) or len(entry["values"]) != size:
        found = f"{len(entry['values'] or b'')} bytes"
        yield "values", found, f"{size} bytes, {len(times)} values of {entry['dtype']} {list(shape)}"
        return
    if valid is None or len(valid) not in (0, len(times)) or not all(isinstance(one, bool) for one in valid):
        yield "valid", f"{len(valid or ())} values", f"none, or true or false for each of {len(times)} values"
        return
    bad = np.flatnonzero(~np.isfinite(times) | (np.diff(times, prepend=-np.inf) <= 0))
    if len(bad):
        yield "time_s", float(times[bad[0]]), "ascending seconds after the clip's beginning"
    elif span is not None and (times[0] < -span[1] or times[-1] > span[0] + span[1]):
        outside = times[0] if times[0] < -span[1] else times[-1]
        yield "time_s", float(outside), f"seconds from the clip's start, between 0 and its {span[0]:g}"
    yield from _not_finite(_signal(entry))


def _not_finite(signal: Signal) -> Iterator[Found]:
    if signal.values.dtype.kind == "f":
        flat = signal.values.reshape(len(signal.values), -1)
        bad = np.argwhere(~np.isfinite(flat) & signal.usable[:, None])
        if len(bad):
            expected = "finite numbers (values that were not measured: valid = false)"
            yield "values", f"{flat[tuple(bad[0])]} at {signal.time_s[bad[0][0]]:g} s", expected


def views_to_row(views: Mapping[str, SideView], stored: Any = str) -> list[dict[str, Any]]:
    """The cell of a clip's side views; `stored(uri)` is the address as the manifest names it."""
    return [
        {"name": name, "video_uri": stored(views[name].video_uri), "start_s": float(views[name].start_s)}
        for name in sorted(views)
    ]


def row_to_views(cell: Sequence[Mapping[str, Any]] | None, base: str | None) -> dict[str, SideView]:
    """The views of a cell, relative addresses resolved against the manifest's folder `base`. Raises `ManifestError`."""
    for field, value, expected in view_faults(cell):
        raise ManifestError(field, value, expected)
    found = {}
    for entry in cell or ():
        uri = entry["video_uri"] if base is None else resolve_uri(entry["video_uri"], base)
        found[entry["name"]] = SideView(uri, float(entry["start_s"]))
    return found


def view_faults(cell: Sequence[Mapping[str, Any]] | None) -> Iterator[Found]:
    """Broken rules of a row's side views."""
    if cell is None:
        yield "views", None, "a list"
        return
    names: set[str] = set()
    for entry in cell:
        name, uri, start = entry["name"], entry["video_uri"], entry["start_s"]
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in names:
            yield "views.name", name, EXPECTED_NAME
            continue
        names.add(name)
        if not isinstance(uri, str) or not uri or "\0" in uri:
            yield f"views.{name}.video_uri", uri, "a path or s3:// address"
        if not isinstance(start, float) or not np.isfinite(start) or start < 0:
            yield f"views.{name}.start_s", start, "seconds >= 0"


def signal_names(clip: Clip) -> list[str]:
    """As the Parquet file lists them."""
    return sorted(clip.signals)
