"""Rollouts of a folder of `jala rollouts run`: what was executed, and the film where there is one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jala_ray.reports.view.recording import ViewWriter, Wanted
from jala_ray.rollouts.job import LINES, action_file, key_of
from jala_ray.types import ConfigError, UserError
from jala_ray.video.decode import VideoReader

SCORES, VIDEOS = "scores.json", "videos"


def write_rollouts(writer: ViewWriter, folder: str, wanted: Wanted) -> None:
    """Those with a film first. Raises `UserError` for a folder without outcomes, or of a run that was not finished."""
    place = Path(folder)
    fps = _fps(place)
    lines = {key_of(row): row for row in map(json.loads, (place / LINES).read_text().splitlines()) if "success" in row}
    if not lines:
        raise UserError(f"rollouts of {folder}", 0, "one that ended")
    if lacking := sorted(set(wanted.numbers) - {line["number"] for line in lines.values()}):
        raise ConfigError("numbers", lacking, f"numbers of rollouts in {place / LINES}")
    filmed = [key for key in lines if (place / VIDEOS / f"{key}.mp4").is_file()]
    several = [*filmed, *(key for key in lines if key not in filmed)]
    if wanted.numbers:
        several = [key for key in several if lines[key]["number"] in wanted.numbers]
    for key in several[: None if wanted.numbers else wanted.most]:
        _rollout(writer, place, lines[key], fps, wanted)


def _fps(place: Path) -> float:
    scores = place / SCORES
    found = json.loads(scores.read_text()).get("fps") if scores.is_file() else None
    if not found:
        remedy = "Run the same `jala rollouts run` again: it does only what is missing."
        raise UserError(f"fps in {scores}", found, "the simulator's steps a second", remedy)
    return float(found)


def _rollout(writer: ViewWriter, place: Path, line: Mapping[str, Any], fps: float, wanted: Wanted) -> None:
    key = key_of(line)
    outcome = "success" if line["success"] else "failure"
    told = [
        line["task"],
        f"{line['arm']}, {line['variant']}, seed {line['seed']}",
        f"{outcome} after {line['steps']} steps",
    ]
    writer.words([key, "outcome"], "\n".join(told))
    actions = np.load(action_file(place, key))
    writer.dimensions(
        [key, "action"], [str(i) for i in range(actions.shape[1])], np.arange(len(actions)) / fps, actions
    )
    film = place / VIDEOS / f"{key}.mp4"
    if film.is_file():
        with VideoReader(str(film)) as reader:
            size, rate = wanted.size(reader.info.height, reader.info.width), reader.info.fps
            times = np.arange(0, reader.info.duration_s - 0.5 / rate, wanted.every(rate) / rate)
            for time_s, picture in zip(times, reader.each(times, lambda one: one.rgb(size)), strict=True):
                writer.picture([key, "film"], time_s, picture)
