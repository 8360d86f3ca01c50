"""`meta/info.json` of a LeRobot data set: what its rows and cameras are. What it says beyond that may be anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jala_ray import storage
from jala_ray.storage import StorageOptions
from jala_ray.types import SIGNAL_DTYPES, ManifestError

INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns of every row that number it, and are no signals."""
CONVERT = "Convert it with lerobot's own scripts."


@dataclass(frozen=True)
class RobotInfo:
    """What reading a data set needs of its info.json."""

    version: str
    fps: float
    """Rows, and frames of every camera, per second."""
    chunk_size: int
    """Episodes of a folder `chunk-NNN`, of versions before 3."""
    data_path: str
    """Template of a Parquet file's address below the data set's folder."""
    video_path: str
    """The same of a camera's file."""
    signals: Mapping[str, tuple[int, ...]]
    """Numeric columns and the declared shape of one value."""
    cameras: tuple[str, ...]
    """Video keys, in the file's order, without depth."""
    notes: tuple[str, ...]
    """What is declared and not read, with the reason."""

    @property
    def concatenated(self) -> bool:
        """Many episodes a file, as from v3.0 on."""
        return self.version.startswith("v3")

    @cached_property
    def period_s(self) -> float:
        """Between two rows."""
        return 1 / self.fps


def is_robot_set(address: str, options: StorageOptions | None = None) -> bool:
    """Whether a folder is a LeRobot data set."""
    return not address.endswith(".parquet") and storage.exists(storage.join(address, INFO), options)


def read_json(base: str, name: str, options: StorageOptions | None = None) -> Any:
    """A JSON file of a data set. Raises `ManifestError` where it is absent or damaged, `StorageError` where it can't be reached."""
    uri = storage.join(base, name)
    try:
        return json.loads(storage.read_bytes(uri, options))
    except storage.MissingFile as error:
        remedy = f"{base} is the folder that holds meta/, data/ and videos/."
        raise ManifestError(uri, "no such file", "a file of a LeRobot data set", remedy) from error
    except ValueError as error:
        raise ManifestError(uri, str(error), "a JSON file", "It is damaged.") from error


def read_info(base: str, options: StorageOptions | None = None) -> RobotInfo:
    """Raises `ManifestError` for a version that is not read, and for fields that can't be."""
    return parse_info(read_json(base, INFO, options), storage.join(base, INFO))


def parse_info(raw: Any, uri: str) -> RobotInfo:
    """Of the parsed file; `uri` is for the messages. Unknown keys pass."""
    if not isinstance(raw, Mapping):
        raise ManifestError(uri, raw, "an object")
    version = raw.get("codebase_version")
    if version not in VERSIONS:
        raise ManifestError(f"{uri}: codebase_version", version, f"one of {', '.join(VERSIONS)}", CONVERT)
    fps, features = raw.get("fps"), raw.get("features")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < np.inf:
        raise ManifestError(f"{uri}: fps", fps, "rows per second, a number > 0")
    if not isinstance(features, Mapping) or not all(isinstance(one, Mapping) for one in features.values()):
        raise ManifestError(f"{uri}: features", features, "an object with an object for each column and camera")
    chunk = raw.get("chunks_size", 1000)
    if not isinstance(chunk, int) or chunk < 1:
        raise ManifestError(f"{uri}: chunks_size", chunk, "an integer >= 1")
    signals, cameras, notes = _sorted_out(features, uri)
    data, video = _path(raw, "data_path", uri, True), _path(raw, "video_path", uri, bool(cameras))
    return RobotInfo(version, float(fps), chunk, data, video, signals, cameras, notes)


def _path(raw: Mapping[str, Any], name: str, uri: str, needed: bool) -> str:
    value = raw.get(name)
    if value is None and not needed:
        return ""
    if not isinstance(value, str) or not value.endswith("}.parquet" if name == "data_path" else ".mp4"):
        raise ManifestError(f"{uri}: {name}", value, "a template such as data/chunk-{chunk_index:03d}/...")
    return value


def _sorted_out(
    features: Mapping[str, Mapping[str, Any]], uri: str
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...], tuple[str, ...]]:
    """Signals with their shapes, cameras, and notes of what is neither."""
    signals: dict[str, tuple[int, ...]] = {}
    cameras, notes = list[str](), list[str]()
    for name, feature in features.items():
        kind = feature.get("dtype")
        if kind == "video":
            notes += [f"{name}: depth video, which is not read"] if is_depth(feature) else []
            cameras += [] if is_depth(feature) else [name]
        elif kind in SIGNAL_DTYPES:
            signals |= {} if name in BOOKKEEPING else {name: _shape(name, feature, uri)}
        else:
            told = "pictures inside Parquet files" if kind == "image" else f"values of type {kind}"
            notes.append(f"{name}: {told}, which are not read")
    return signals, tuple(cameras), tuple(notes)


def _shape(name: str, feature: Mapping[str, Any], uri: str) -> tuple[int, ...]:
    shape = feature.get("shape", [1])
    if not isinstance(shape, list) or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ManifestError(f"{uri}: features.{name}.shape", shape, "a list of integers >= 1")
    return tuple(shape)


def is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether a video holds depth: it is said so, or its pixels are of one channel of more than 8 bits."""
    facts = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    pixels = str(facts.get("video.pix_fmt", facts.get("pix_fmt", "")))
    said = facts.get("video.is_depth_map", facts.get("is_depth_map", False))
    return bool(said) or pixels.startswith(("gray1", "gray9"))
