"""GR00T's `meta/modality.json`: names for parts of the state and the action, for cameras, and for the columns of instructions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jala_ray import storage
from jala_ray.data.robots.info import RobotInfo, read_json
from jala_ray.storage import StorageOptions
from jala_ray.types import ManifestError

MODALITY = "meta/modality.json"
WHOLE = {"state": "observation.state", "action": "action"}
"""The column that parts are of where they name none."""


@dataclass(frozen=True)
class Part:
    """Dimensions `start` .. `end` - 1 of a column of vectors."""

    column: str
    start: int
    end: int


@dataclass(frozen=True)
class Modality:
    """Further names in a data set; empty without a modality.json."""

    parts: Mapping[str, Part] = field(default_factory=dict)
    """By `state.NAME` and `action.NAME`."""
    cameras: Mapping[str, str] = field(default_factory=dict)
    """`video.NAME` -> LeRobot's key."""
    instruction: str | None = None
    """Column that numbers a row's instruction among the tasks; None: `task_index`."""


def read_modality(base: str, info: RobotInfo, options: StorageOptions | None = None) -> Modality:
    """Raises `ManifestError` for parts that no column has."""
    uri = storage.join(base, MODALITY)
    if not storage.exists(uri, options):
        return Modality()
    return parse_modality(read_json(base, MODALITY, options), info, uri)


def parse_modality(raw: Any, info: RobotInfo, uri: str) -> Modality:
    """Of the parsed file; `uri` is for the messages."""
    parts = {
        f"{group}.{name}": _part(group, name, entry, info, uri)
        for group in WHOLE
        for name, entry in _entries(raw, group, uri).items()
    }
    cameras = {f"video.{name}": _key(entry, name) for name, entry in _entries(raw, "video", uri).items()}
    columns = [_key(entry, f"annotation.{name}") for name, entry in _entries(raw, "annotation", uri).items()]
    known = [column for column in columns if column in info.signals or column == "task_index"]
    return Modality(parts, cameras, known[0] if known else None)


def _entries(raw: Any, group: str, uri: str) -> Mapping[str, Any]:
    entries = raw.get(group, {}) if isinstance(raw, Mapping) else None
    if not isinstance(entries, Mapping) or not all(isinstance(one, Mapping) for one in entries.values()):
        raise ManifestError(f"{uri}: {group}", entries, "an object with an object for each name")
    return entries


def _key(entry: Mapping[str, Any], default: str) -> str:
    return str(entry.get("original_key") or default)


def _part(group: str, name: str, entry: Mapping[str, Any], info: RobotInfo, uri: str) -> Part:
    field, column = f"{uri}: {group}.{name}", _key(entry, WHOLE[group])
    if column not in info.signals:
        known = ", ".join(info.signals) or "none"
        raise ManifestError(f"{field}.original_key", column, f"a numeric column of info.json: {known}")
    start, end, shape = entry.get("start"), entry.get("end"), info.signals[column]
    length = shape[0] if len(shape) == 1 else 0
    if isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= length:
        return Part(column, start, end)
    expected = f"0 <= start < end <= the length of {column}, whose values have the shape {list(shape)}"
    raise ManifestError(f"{field}: start, end", (start, end), expected)
