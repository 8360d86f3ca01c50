"""Videos of rollouts that were done, made from their seeds and actions: the same steps again, this time with a camera."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jala_ray.rollouts.job import Session, action_file, key_of, outcomes
from jala_ray.rollouts.process import SimulatorFailed, SimulatorProcess
from jala_ray.video.write import write_mp4

FPS = 15
"""Of a video, about."""
STEPS = 50
"""Of pictures that are held at a time."""
CRF = 27


@dataclass(frozen=True)
class Film:
    key: str
    arm: str
    task: str
    variant: str
    number: int
    success: bool
    file: str
    """Within the folder; empty where there is none."""
    problem: str = ""


def picked(lines: Sequence[Mapping[str, Any]], arms: Sequence[str], each: int) -> list[Mapping[str, Any]]:
    """The first `each` successes and failures of every task and variant, of the arms."""
    counts: dict[tuple[Any, ...], int] = defaultdict(int)
    found = []
    for line in lines:
        if "success" not in line or line["arm"] not in arms:
            continue
        place = (line["task"], line["variant"], line["arm"], line["success"])
        counts[place] += 1
        if counts[place] <= each:
            found.append(line)
    return found


def filmed(session: Session, arms: Sequence[str], each: int) -> list[Film]:
    """Videos of picked rollouts, in videos/; those that are there stay. A rollout that comes out otherwise is a `problem`."""
    folder, films = session.folder / "videos", []
    folder.mkdir(exist_ok=True)
    process: SimulatorProcess | None = None
    try:
        for line in picked(outcomes(session), arms, each):
            key = key_of(line)
            path, problem = folder / f"{key}.mp4", ""
            if not path.is_file():
                try:
                    process = process or SimulatorProcess(session.job.start)
                    problem = _film(process, session, line, path)
                except SimulatorFailed as error:
                    process, problem = None, str(error)
            facts = (line["arm"], line["task"], line["variant"], line["number"], line["success"])
            films.append(Film(key, *facts, f"videos/{path.name}" if path.is_file() else "", problem))
    finally:
        if process is not None:
            process.close()
    return films


def _film(process: SimulatorProcess, session: Session, line: Mapping[str, Any], path: Path) -> str:
    """Write the video; why it can't be, or ""."""
    file, every = action_file(session.folder, path.stem), max(1, round(session.hello["fps"] / FPS))
    if not file.is_file():
        return f"no file {file.name} in {file.parent}"
    actions = np.load(file)
    process.reset(line["task"], line["seed"], line["variant"])
    last: dict[str, Any] = {}

    def pictures() -> Iterator[np.ndarray]:
        for begin in range(0, len(actions), STEPS):
            last.update(process.step(actions=actions[begin : begin + STEPS], see=every))
            yield from beside(last["pictures"])
        yield from beside({name: seen[None] for name, seen in process.observe()["pictures"].items()})

    part = path.with_suffix(".part.mp4")
    write_mp4(part, pictures(), session.hello["fps"] / every, gop=3 * FPS, crf=CRF)
    same = [bool(one) for one in last["completed"]] == line["completed"] and last["steps"] == line["steps"]
    if not same:
        part.unlink()
        return "the same actions from the same seed ended otherwise"
    part.rename(path)
    return ""


def beside(pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """(T, H, W, 3) of every camera as (T, H, all widths, 3), cut to even sizes."""
    if not pictures:
        return np.zeros((0, 2, 2, 3), np.uint8)
    whole = np.concatenate(list(pictures.values()), 2)
    return whole[:, : whole.shape[1] // 2 * 2, : whole.shape[2] // 2 * 2]
