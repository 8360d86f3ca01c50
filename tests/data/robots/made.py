"""Small LeRobot data sets, written as v2.1 and as v3.0 have them, of the same rows and pictures. Every picture says its number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from jala_ray.data.manifest.places import RowFilter
from jala_ray.data.robots.sets import RobotSets, open_sets
from jala_ray.data.robots.source import RobotSource
from jala_ray.data.samples.assets import Assets
from jala_ray.data.samples.source import Sample
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.storage import StorageOptions
from jala_ray.training.build import vocabulary
from jala_ray.video.write import write_mp4
from tests.support import make_assets, small
from tests.video.numbered import HEIGHT, WIDTH, numbered

FPS, TASKS = 10, ("Open the drawer.", "Close the drawer.")
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
SIGNALS = ("observation.state", "action")
SIDE = 96
ANY = RowFilter(signals=SIGNALS)


@dataclass(frozen=True)
class Recorded:
    """The rows of one episode."""

    number: int
    first: int
    """Number of its first frame in the data set, which its pictures show; the wrist's are 200 more."""
    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["timestamp"])


def recorded(lengths: Sequence[int], seed: int = 0) -> list[Recorded]:
    rng = np.random.default_rng(seed)
    firsts = [0, *accumulate(lengths)]
    return [_recorded(rng, i, firsts[i], length) for i, length in enumerate(lengths)]


def _recorded(rng: np.random.Generator, number: int, first: int, length: int) -> Recorded:
    frame = np.arange(length)
    state = np.cumsum(rng.normal(size=(length, 5)), axis=0)
    columns = {
        "observation.state": state,
        "action": rng.normal(size=(length, 3)).astype(np.float32),
        "observation.counter": (frame * 3 + number).astype(np.int32),
        "next.done": frame == length - 1,
        "timestamp": (frame / FPS).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.full(length, number),
        "index": first + frame,
        "task_index": np.full(length, number % 2),
    }
    return Recorded(number, first, columns)


FEATURES: dict[str, dict[str, Any]] = {
    "observation.state": {"dtype": "float64", "shape": [5], "names": None},
    "action": {"dtype": "float32", "shape": [3]},
    "observation.counter": {"dtype": "int32", "shape": [1]},
    "next.done": {"dtype": "bool", "shape": [1]},
    FRONT: {"dtype": "video", "shape": [HEIGHT, WIDTH, 3], "info": {"video.is_depth_map": False}},
    WRIST: {"dtype": "video", "shape": [HEIGHT, WIDTH, 3]},
    "observation.images.depth": {"dtype": "video", "shape": [8, 8, 1], "info": {"video.pix_fmt": "gray12le"}},
    "language_events": {"dtype": "language", "shape": [1]},
    "timestamp": {"dtype": "float32", "shape": [1]},
    "frame_index": {"dtype": "int64", "shape": [1]},
    "episode_index": {"dtype": "int64", "shape": [1]},
    "index": {"dtype": "int64", "shape": [1]},
    "task_index": {"dtype": "int64", "shape": [1]},
}
DEPTH = "observation.images.depth"
EVENT = {"role": "user", "content": "Go.", "style": None, "camera": None, "tool_calls": None}
_EVENT = [
    *((name, pa.string()) for name in ("role", "content", "style", "camera")),
    ("tool_calls", pa.list_(pa.string())),
]
PATHS = {
    "v2.1": (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
    "v3.0": (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
}


def write_set(
    folder: Path, version: str, lengths: Sequence[int] = (12, 9, 15, 11, 8), *, seed: int = 0, gop: int = 2, **info: Any
) -> Path:
    """A data set of two cameras; `info` are further keys of info.json."""
    data, video = PATHS[version]
    facts: dict[str, Any] = {
        "codebase_version": version,
        "fps": FPS,
        "chunks_size": 3,
        "data_path": data,
        "video_path": video,
    }
    facts |= {"total_episodes": len(lengths), "total_frames": sum(lengths), "total_tasks": len(TASKS)}
    episodes = recorded(lengths, seed)
    (folder / "meta").mkdir(parents=True)
    said = facts | {"features": FEATURES, "tools": {"unknown": True}} | info
    (folder / "meta/info.json").write_text(json.dumps(said))
    (_write_2 if version == "v2.1" else _write_3)(folder, episodes, gop)
    return folder


def _table(columns: Mapping[str, np.ndarray]) -> pa.Table:
    arrays = {name: pa.array(value.tolist() if value.ndim > 1 else value) for name, value in columns.items()}
    for name in SIGNALS:
        kind = pa.from_numpy_dtype(columns[name].dtype)
        arrays[name] = pa.array(list(columns[name]), pa.list_(kind))
    arrays["language_events"] = pa.array([[EVENT]] * len(arrays["index"]), pa.list_(pa.struct(_EVENT)))
    return pa.table(arrays)


def _film(path: Path, episodes: Iterable[Recorded], camera: str, gop: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    more = 200 if camera == WRIST else 0
    frames = (image for one in episodes for image in numbered(len(one), one.first + more))
    write_mp4(path, frames, fps=FPS, gop=gop)


def _lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def _write_2(folder: Path, episodes: Sequence[Recorded], gop: int) -> None:
    _lines(folder / "meta/tasks.jsonl", ({"task_index": i, "task": task} for i, task in enumerate(TASKS)))
    listed = ({"episode_index": one.number, "length": len(one), "tasks": [TASKS[one.number % 2]]} for one in episodes)
    _lines(folder / "meta/episodes.jsonl", listed)
    data, video = PATHS["v2.1"]
    for one in episodes:
        place = {"episode_chunk": one.number // 3, "episode_index": one.number}
        path = folder / data.format(**place)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(_table(one.columns), path)
        for camera in (FRONT, WRIST):
            _film(folder / video.format(**place, video_key=camera), [one], camera, gop)


SPLITS = {"data": (0, 3), FRONT: (0, 2), WRIST: (0,)}
"""Episodes with which a new file begins."""


def _write_3(folder: Path, episodes: Sequence[Recorded], gop: int) -> None:
    pd.DataFrame({"task_index": range(len(TASKS))}, index=list(TASKS)).to_parquet(folder / "meta/tasks.parquet")
    data, video = PATHS["v3.0"]
    columns: dict[str, list[Any]] = {
        "episode_index": [one.number for one in episodes],
        "tasks": [[TASKS[one.number % 2]] for one in episodes],
        "length": [len(one) for one in episodes],
        "dataset_from_index": [one.first for one in episodes],
        "dataset_to_index": [one.first + len(one) for one in episodes],
        "stats/action/mean": [[0.0]] * len(episodes),
    }
    for name, begins in SPLITS.items():
        prefix = "data" if name == "data" else f"videos/{name}"
        for part in ("chunk_index", "file_index"):
            columns[f"{prefix}/{part}"] = []
        starts = [begin for begin in begins if begin < len(episodes)]
        for file, (begin, end) in enumerate(pairwise([*starts, len(episodes)])):
            mine = episodes[begin:end]
            columns[f"{prefix}/chunk_index"] += [0] * len(mine)
            columns[f"{prefix}/file_index"] += [file] * len(mine)
            place = {"chunk_index": 0, "file_index": file}
            if name == "data":
                path = folder / data.format(**place)
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.concat_tables(_table(one.columns) for one in mine), path, row_group_size=10)
                continue
            _film(folder / video.format(**place, video_key=name), mine, name, gop)
            times = [(one.first - mine[0].first) / FPS for one in mine]
            columns.setdefault(f"videos/{name}/from_timestamp", []).extend(times)
            ends = [time + len(one) / FPS for time, one in zip(times, mine, strict=True)]
            columns.setdefault(f"videos/{name}/to_timestamp", []).extend(ends)
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), path)


def opened(
    *folders: Path | str, signals: Sequence[str] | None = None, options: StorageOptions | None = None
) -> RobotSource:
    """A source over some data sets of one embodiment, of pictures that show their numbers."""
    sets = open_sets([(str(folder), "arm") for folder in folders], options)
    return RobotSource(sets, assets_of(SIDE), options, signals)


def assets_of(side: int) -> Assets:
    """Without a motion tokenizer; pictures have `side` pixels."""
    made = make_assets(small())
    vocab = vocabulary(made.text.vocab_size, None)
    return replace(made, motion=None, spec=replace(made.spec, vocab=vocab, image_size=side))


def rows_of(sets: RobotSets) -> list[PlanRow]:
    """All frames."""
    return [PlanRow(0, i, i) for i in range(int(sets.first[-1][-1]))]


def samples_of(source: RobotSource) -> list[Sample]:
    found = source.samples(rows_of(source.sets))
    assert all(isinstance(one, Sample) for one in found), found
    return [one for one in found if isinstance(one, Sample)]
