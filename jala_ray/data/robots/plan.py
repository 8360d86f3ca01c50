"""The catalogue of robot sets: a row for every frame that may be drawn."""

from __future__ import annotations

import zlib

import numpy as np

from jala_ray import storage
from jala_ray.config import DataConfig
from jala_ray.data.manifest.places import ANY, PLACE, Catalogue, RowFilter, selected
from jala_ray.data.robots.sets import RobotSet, RobotSets
from jala_ray.data.robots.source import TASK
from jala_ray.data.robots.split import held_out, spans
from jala_ray.types import ManifestError, Split

DOMAIN = "robot"
_RECORD = np.dtype([("length", "<i8"), ("bytes", "<i8"), ("offset", "<i8"), ("number", "<i8")])


def robot_catalogue(sets: RobotSets, data: DataConfig, split: Split, wanted: RowFilter = ANY) -> Catalogue:
    """Frames of a split's episodes, without idle ones at their ends; each is a window of its own, as neighbours look alike.

    A row's CRC is of its episode: what `meta/` says of it and the bytes of its Parquet file, so that the digest is another one when a set
    changes. Raises `ConfigError` for a set without a wanted signal, `ManifestError` where no frame is left to train on.
    """
    for one in sets.sets:
        for name in wanted.signals:
            one.part(name)
    parts, cells = [np.zeros(0, PLACE)], [np.zeros(0, np.uint16)]
    for number, one in enumerate(sets.sets if wanted.domain in (None, DOMAIN) else ()):
        chosen = np.flatnonzero(held_out(one, data.held_out_episodes) == (split == "val"))
        parts.append(_places(one, chosen, spans(one, data.trim_idle), sets.first[number]))
        cells.append(np.full(len(parts[-1]), number, np.uint16))
    place = np.concatenate(parts)
    named = tuple((one.name, TASK) for one in sets.sets)
    found = Catalogue(place, np.concatenate(cells), np.ones(len(place), bool), named)
    if not len(found) and wanted.domain is None:
        expected = f"at least one episode of split {split!r}"
        raise ManifestError("data.robot_sets", [one.base for one in sets.sets], expected, "See data.held_out_episodes.")
    return selected(found, None, 1.0)


def _places(of: RobotSet, chosen: np.ndarray, span: np.ndarray, first: np.ndarray) -> np.ndarray:
    """(n,) of `PLACE`: the frames of some episodes, in order."""
    begin, count = span[chosen, 0], np.diff(span[chosen], axis=1)[:, 0]
    place = np.zeros(int(count.sum()), PLACE)
    if not len(place):
        return place
    within = np.arange(len(place)) - np.repeat(np.cumsum(count) - count, count)
    place["row"] = np.repeat(first[chosen] + begin, count) + within
    place["crc"] = np.repeat(_checks(of)[chosen], count)
    return place


def _checks(of: RobotSet) -> np.ndarray:
    """(E,) uint32 of every episode and of the file that its rows are in."""
    sizes = storage.list_files(storage.join(of.base, "data"), of.options)
    prefix = len(storage.join(of.base, "data")) + 1
    episodes = of.episodes
    record = np.zeros(len(episodes), _RECORD)
    record["length"], record["offset"], record["number"] = episodes.length, episodes.offset, episodes.number
    record["bytes"] = [sizes.get(of.data_file(place)[prefix:], -1) for place in range(len(episodes))]
    begun = zlib.crc32(of.digest.encode())
    return np.array([zlib.crc32(one.tobytes(), begun) for one in record], np.uint32)
