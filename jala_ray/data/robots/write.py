"""Write a LeRobot data set of version 3.0, episode by episode: rows as Parquet, cameras as H.264 with a keyframe every second frame."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jala_ray.data.robots.info import BOOKKEEPING, INFO
from jala_ray.data.samples.signals import QUANTILES
from jala_ray.types import ConfigError, UserError
from jala_ray.video.picture import Size
from jala_ray.video.write import Encoding, Mp4Writer

DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
ENCODING = Encoding(gop=2)
SEEN_EVERY = 10
"""Frames between those that a camera's statistics are of."""
KINDS = {"timestamp": "float32"}
"""Of bookkeeping; the others are int64."""


@dataclass(frozen=True)
class RobotLayout:
    """What the rows of a data set hold."""

    fps: float
    signals: Mapping[str, int]
    """{name: width}, float32: `observation.state`, `action`."""
    cameras: Mapping[str, Size]
    """{key: (H, W)}, even: `observation.images.front`."""
    robot: str = ""
    episodes_per_file: int = 50

    def __post_init__(self) -> None:
        if self.fps <= 0 or self.episodes_per_file < 1:
            raise ConfigError("fps, episodes_per_file", (self.fps, self.episodes_per_file), "positive numbers")

    @property
    def features(self) -> dict[str, Any]:
        """As info.json has them."""
        found: dict[str, Any] = {
            name: {"dtype": "float32", "shape": [width], "names": None} for name, width in self.signals.items()
        }
        for key, (height, width) in self.cameras.items():
            facts = {"height": height, "width": width, "codec": "h264", "pix_fmt": "yuv420p", "is_depth_map": False}
            info = {f"video.{name}": value for name, value in (facts | {"fps": self.rate, "channels": 3}).items()}
            names = ["height", "width", "channels"]
            shape = [height, width, 3]
            found[key] = {"dtype": "video", "shape": shape, "names": names, "info": info | {"has_audio": False}}
        plain = {"shape": [1], "names": None}
        return found | {name: {"dtype": KINDS.get(name, "int64"), **plain} for name in BOOKKEEPING}

    @property
    def rate(self) -> float:
        """A whole number as one: lerobot's readers expect it."""
        return int(self.fps) if float(self.fps).is_integer() else self.fps


@dataclass
class Colours:
    """Counts (3, 256) of a camera's levels."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros((3, 256), np.int64))
    frames: int = 0

    def add(self, pictures: np.ndarray) -> None:
        for channel in range(3):
            self.counts[channel] += np.bincount(pictures[..., channel].ravel(), minlength=256)
        self.frames += len(pictures)

    def statistics(self) -> dict[str, Any]:
        """Levels of 0 to 1, (3, 1, 1) each."""
        levels, share = np.arange(256) / 255, self.counts / self.counts.sum(1, keepdims=True)
        mean = share @ levels
        present = [levels[own > 0] for own in self.counts]
        found = {"min": [p.min() for p in present], "max": [p.max() for p in present], "mean": mean}
        found |= {"std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0))}
        found |= {name: levels[(share.cumsum(1) < q).sum(1).clip(max=255)] for name, q in QUANTILES.items()}
        return {name: np.reshape(value, (3, 1, 1)).tolist() for name, value in found.items()} | {"count": [self.frames]}


class RobotWriter:
    """A data set that appears under its name when `close` has completed it; as a context manager it closes, or discards on an exception.

    Raises `ConfigError` for a folder that is there, `UserError` for rows that are not as the layout says.
    """

    def __init__(self, folder: str | os.PathLike[str], layout: RobotLayout) -> None:
        self.folder, self.layout = Path(folder), layout
        if self.folder.exists():
            raise ConfigError("data set", str(folder), "a folder that is not there yet", "Remove it, or name another.")
        self._part = self.folder.with_name(f".{self.folder.name}.part")
        shutil.rmtree(self._part, ignore_errors=True)
        (self._part / EPISODES).parent.mkdir(parents=True)
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in layout.signals}
        self._colours = {key: Colours() for key in layout.cameras}
        self._files, self._data, self._films = ExitStack(), None, dict[str, Mp4Writer]()
        self._index = 0

    def add(self, signals: Mapping[str, np.ndarray], pictures: Mapping[str, np.ndarray], task: str) -> None:
        """One episode: signals (T, D) by name, pictures (T, H, W, 3) uint8 by camera, of the same moments."""
        length = self._checked(signals, pictures)
        number = len(self._episodes)
        if number % self.layout.episodes_per_file == 0:
            self._next_file()
        starts = {key: film.count / self.layout.fps for key, film in self._films.items()}
        self._write_rows(signals, length, self._tasks.setdefault(task, len(self._tasks)), number)
        for key, film in self._films.items():
            for image in pictures[key]:
                film.add_rgb(image)
            self._colours[key].add(pictures[key][::SEEN_EVERY])
        for name in self.layout.signals:
            self._rows[name].append(np.asarray(signals[name], np.float32))
        self._episodes.append(self._described(length, task, starts))
        self._index += length

    def _checked(self, signals: Mapping[str, np.ndarray], pictures: Mapping[str, np.ndarray]) -> int:
        lengths = {len(values) for values in (*signals.values(), *pictures.values())}
        if len(lengths) != 1 or 0 in lengths:
            raise UserError("episode", sorted(lengths), "one or more rows, as many of each signal and camera")
        for name, width in self.layout.signals.items():
            if name not in signals or signals[name].shape[1:] != (width,):
                raise UserError(name, getattr(signals.get(name), "shape", None), f"(T, {width})")
        for key, size in self.layout.cameras.items():
            shown = pictures.get(key)
            if shown is None or shown.shape[1:] != (*size, 3) or shown.dtype != np.uint8:
                raise UserError(key, getattr(shown, "shape", None), f"(T, {size[0]}, {size[1]}, 3) uint8")
        return lengths.pop()

    @property
    def _file(self) -> int:
        return len(self._episodes) // self.layout.episodes_per_file

    def _place(self, template: str, **names: str) -> Path:
        path = self._part / template.format(chunk_index=0, file_index=self._file, **names)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _next_file(self) -> None:
        self._files.close()
        self._files = ExitStack()
        self._data = self._files.enter_context(pq.ParquetWriter(self._place(DATA), self._schema()))
        self._films = {
            key: self._files.enter_context(
                Mp4Writer(self._place(VIDEO, video_key=key), size, self.layout.fps, ENCODING)
            )
            for key, size in self.layout.cameras.items()
        }

    def _schema(self) -> pa.Schema:
        fields = [(name, pa.list_(pa.float32(), width)) for name, width in self.layout.signals.items()]
        return pa.schema([*fields, *((name, pa.float32() if name in KINDS else pa.int64()) for name in BOOKKEEPING)])

    def _write_rows(self, signals: Mapping[str, np.ndarray], length: int, task: int, number: int) -> None:
        """A row group an episode."""
        assert self._data is not None
        frame = np.arange(length)
        columns: dict[str, Any] = {
            name: pa.FixedSizeListArray.from_arrays(
                np.ascontiguousarray(signals[name], np.float32).reshape(-1), self.layout.signals[name]
            )
            for name in self.layout.signals
        }
        columns |= {"timestamp": (frame / self.layout.fps).astype(np.float32), "frame_index": frame}
        columns |= {"episode_index": np.full(length, number), "index": self._index + frame}
        columns["task_index"] = np.full(length, task)
        self._data.write_table(pa.table(columns, schema=self._schema()))

    def _described(self, length: int, task: str, starts: Mapping[str, float]) -> dict[str, Any]:
        """The episode's row of meta/episodes."""
        facts = {"episode_index": len(self._episodes), "tasks": [task], "length": length}
        facts |= {"dataset_from_index": self._index, "dataset_to_index": self._index + length}
        facts |= {"data/chunk_index": 0, "data/file_index": self._file}
        for key, start in starts.items():
            end = start + length / self.layout.fps
            own = {"chunk_index": 0, "file_index": self._file, "from_timestamp": start, "to_timestamp": end}
            facts |= {f"videos/{key}/{name}": value for name, value in own.items()}
        return facts | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}

    def close(self, **facts: Any) -> None:
        """Complete the data set; `facts` go into meta/recorded.json. Raises `UserError` for one without an episode."""
        if not self._episodes:
            self.discard()
            raise UserError("data set", 0, "one or more episodes")
        self._files.close()
        meta = self._part / "meta"
        (self._part / INFO).write_text(json.dumps(self._info(), indent=1))
        (meta / "stats.json").write_text(json.dumps(self._statistics(), indent=1))
        (meta / "recorded.json").write_text(json.dumps(facts, indent=1))
        pq.write_table(pa.Table.from_pylist(self._episodes), self._part / EPISODES)
        pq.write_table(_tasks(list(self._tasks)), meta / "tasks.parquet")
        self._part.rename(self.folder)

    def _info(self) -> dict[str, Any]:
        count = len(self._episodes)
        totals = {"total_episodes": count, "total_frames": self._index, "total_tasks": len(self._tasks)}
        sizes = {"chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200}
        paths = {"data_path": DATA, "video_path": VIDEO}
        facts = {"codebase_version": "v3.0", "robot_type": self.layout.robot, "fps": self.layout.rate}
        return facts | totals | sizes | paths | {"splits": {"train": f"0:{count}"}, "features": self.layout.features}

    def _statistics(self) -> dict[str, Any]:
        found = {name: _of_rows(np.concatenate(rows)) for name, rows in self._rows.items()}
        return found | {key: colours.statistics() for key, colours in self._colours.items()}

    def discard(self) -> None:
        """Stop; nothing is left."""
        for film in self._films.values():
            film.discard()
        shutil.rmtree(self._part, ignore_errors=True)

    def __enter__(self) -> RobotWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None:
            self.discard()
        elif self._part.exists():
            self.close()


def _of_rows(rows: np.ndarray) -> dict[str, Any]:
    wide = rows.astype(np.float64)
    found = {"min": wide.min(0), "max": wide.max(0), "mean": wide.mean(0), "std": wide.std(0)}
    found |= {name: np.quantile(wide, q, axis=0) for name, q in QUANTILES.items()}
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(rows)]}


def _tasks(tasks: Sequence[str]) -> pa.Table:
    """The texts are pandas' index, as lerobot writes them."""
    index, number = "__index_level_0__", "task_index"
    described = [
        {"name": name, "field_name": field_name, "pandas_type": kind, "numpy_type": held, "metadata": None}
        for name, field_name, kind, held in (
            (number, number, "int64", "int64"),
            (None, index, "unicode", "object"),
        )
    ]
    pandas = {"index_columns": [index], "column_indexes": [], "columns": described, "pandas_version": "2.2.0"}
    table = pa.table({number: pa.array(range(len(tasks)), pa.int64()), index: pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
