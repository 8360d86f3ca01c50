"""A point goes to a goal that its camera shows, at a speed that its instruction tells: a data set, policies of known worth, a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jala_ray.config import RunConfig
from jala_ray.presets import PRESETS
from jala_ray.serving.contract import Observation
from jala_ray.video.write import write_mp4
from tests.support import small

FPS, LENGTH, SIDE, HORIZON = 10, 24, 64, 8
CAMERA, STATE, ACTION = "observation.images.front", "observation.state", "action"
SPEEDS = {"Go slowly.": 0.03, "Go fast.": 0.12}
TASKS = tuple(SPEEDS)
SQUARE = 5
"""Pixels from the middle of the goal's square to its edge."""


def walked(place: np.ndarray, goal: np.ndarray, speed: float, steps: int) -> np.ndarray:
    """(steps, 2): where the point is next, and so on."""
    found = np.empty((steps, 2))
    for i in range(steps):
        off = goal - place
        place = place + off * min(1.0, speed / max(float(np.linalg.norm(off)), 1e-9))
        found[i] = place
    return found


def shown(goal: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: a bright square at the goal, on grey."""
    picture = np.full((SIDE, SIDE, 3), 60, np.uint8)
    x, y = np.rint((goal + 1) / 2 * (SIDE - 1)).astype(int)
    picture[max(0, y - SQUARE) : y + SQUARE + 1, max(0, x - SQUARE) : x + SQUARE + 1] = 230
    return picture


def looked(picture: np.ndarray) -> np.ndarray:
    """(2,) the goal that a picture shows; the middle where it shows none."""
    rows, columns = np.nonzero(picture[:, :, 1] > 150)
    return np.array([columns.mean(), rows.mean()]) / (SIDE - 1) * 2 - 1 if len(rows) else np.zeros(2)


@dataclass(frozen=True)
class Episode:
    number: int
    goal: np.ndarray
    states: np.ndarray
    """(LENGTH, 2): places."""
    actions: np.ndarray
    """(LENGTH, 2): the places after them."""

    @property
    def task(self) -> int:
        return self.number % len(TASKS)


def episode(number: int) -> Episode:
    place, goal = np.random.default_rng(number).uniform(-0.8, 0.8, (2, 2))
    after = walked(place, goal, SPEEDS[TASKS[number % len(TASKS)]], LENGTH)
    return Episode(number, goal, np.concatenate([place[None], after[:-1]]), after)


def write_points(folder: Path, episodes: int = 12, told: bool = False) -> Path:
    """A v2.1 data set; `told`: the state has the goal too, (4,), so that nobody needs to look."""
    data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    film = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    features = {name: {"dtype": "float32", "shape": [2]} for name in (STATE, ACTION)}
    features |= {CAMERA: {"dtype": "video", "shape": [SIDE, SIDE, 3]}}
    features |= {
        name: {"dtype": "int64", "shape": [1]} for name in ("frame_index", "episode_index", "index", "task_index")
    }
    features["timestamp"] = {"dtype": "float32", "shape": [1]}
    info = {"codebase_version": "v2.1", "fps": FPS, "chunks_size": 1000, "data_path": data, "video_path": film}
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info | {"features": features}))
    features[STATE]["shape"] = [4 if told else 2]
    named = [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
    (folder / "meta/tasks.jsonl").write_text("".join(json.dumps(one) + "\n" for one in named))
    listed = [{"episode_index": i, "length": LENGTH, "tasks": [TASKS[i % len(TASKS)]]} for i in range(episodes)]
    (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(one) + "\n" for one in listed))
    for number in range(episodes):
        one, place = episode(number), {"episode_chunk": 0, "episode_index": number}
        rows = folder / data.format(**place)
        video = folder / film.format(**place, video_key=CAMERA)
        for path in (rows, video):
            path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(_table(one, told), rows)
        write_mp4(video, (shown(one.goal) for _ in range(LENGTH)), fps=FPS, gop=2)
    return folder


def _table(one: Episode, told: bool) -> pa.Table:
    frame = np.arange(LENGTH)
    states = np.concatenate([one.states, np.tile(one.goal, (LENGTH, 1))], 1) if told else one.states
    columns: dict[str, Any] = {
        name: pa.array(list(values.astype(np.float32)), pa.list_(pa.float32()))
        for name, values in ((STATE, states), (ACTION, one.actions))
    }
    columns |= {
        "timestamp": (frame / FPS).astype(np.float32),
        "frame_index": frame,
        "index": one.number * LENGTH + frame,
    }
    columns |= {"episode_index": np.full(LENGTH, one.number), "task_index": np.full(LENGTH, one.task)}
    return pa.table(columns)


class PointPolicy:
    """Looks, listens and goes there; less of it where it is told so."""

    def __init__(self, looks: bool = True, moves: bool = True, listens: bool = True) -> None:
        self.looks, self.moves, self.listens = looks, moves, listens
        self.metadata: dict[str, Any] = {"cameras": [CAMERA], "state": {STATE: 2}, "action": {ACTION: 2}}
        self.metadata |= {"horizon": HORIZON, "rate_hz": FPS}

    def act(self, observation: Observation, state: dict[str, Any] | None) -> np.ndarray:
        place = observation.state[STATE].astype(np.float64)
        if not self.moves:
            return np.tile(place, (HORIZON, 1)).astype(np.float32)
        goal = looked(observation.pictures[CAMERA]) if self.looks else np.zeros(2)
        speed = SPEEDS.get(observation.instruction, 0.06) if self.listens else 0.06
        return walked(place, goal, speed, HORIZON).astype(np.float32)


def good() -> PointPolicy:
    return PointPolicy()


def settings(root: Path, points: Path, name: str = "points", **values: Any) -> RunConfig:
    """Of a run of seconds over a set of points."""
    base: dict[str, Any] = {
        "name": name,
        "storage__root": str(root),
        "data__manifest": "",
        "motion_tokenizer": "",
        "data__robot_sets": ((str(points), "point"),),
        "data__workers": 0,
        "data__held_out_episodes": 0.34,
        "objective__views": (CAMERA,),
        "objective__reads": "all",
        "objective__latents": "none",
        "objective__head__horizon": HORIZON,
        "optim__lr": 3e-3,
        "train__steps": 4,
        "train__batch": 6,
        "train__micro_batch": 6,
        "train__log_every": 2,
        "train__checkpoint_every": 4,
        "train__validate_every": 4,
        "train__monitor_every": 4,
        "train__val_samples": 4,
        "train__evaluate": (),
        "train__average": 0.5,
        "log__tensorboard": False,
    }
    return small(PRESETS["tiny_libero_spatial"], **(base | values))


def frames_of(film: Path) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8: a film as lerobot's and any other reader of RGB give it."""
    import av

    with av.open(str(film)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")
