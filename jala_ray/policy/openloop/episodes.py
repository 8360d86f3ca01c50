"""Recorded episodes as a policy would have met them: observations at some moments, and what was done from then on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jala_ray.data.robots.films import Films, shots_of
from jala_ray.data.robots.rows import EpisodeRows, RowReader
from jala_ray.data.robots.sets import RobotSet
from jala_ray.data.samples.signals import at_times
from jala_ray.policy.checkpoint import VIDEO
from jala_ray.serving.contract import Policy
from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError, ManifestError, UserError


@dataclass(frozen=True)
class PolicyShape:
    """What a policy reads and gives, as its metadata say."""

    cameras: tuple[str, ...]
    state: Mapping[str, int]
    """Widths by signal."""
    action: Mapping[str, int]
    horizon: int
    rate_hz: float | None
    """Actions a second; None: the data's rate."""

    @classmethod
    def of(cls, policy: Policy) -> PolicyShape:
        """Raises `ConfigError` for metadata that lack what a recording is compared by."""
        told: Mapping[str, Any] = policy.metadata
        for name in ("state", "action"):
            if not isinstance(told.get(name), Mapping):
                raise ConfigError(f"metadata of the policy: {name}", told.get(name), "widths by the data set's names")
        if not isinstance(told.get("horizon"), int) or told["horizon"] < 1:
            raise ConfigError("metadata of the policy: horizon", told.get("horizon"), "actions of an answer, 1 or more")
        rate = told.get("rate_hz")
        return cls(tuple(told.get("cameras", ())), told["state"], told["action"], told["horizon"], rate)

    @property
    def size(self) -> int:
        """Of an action."""
        return sum(self.action.values())


@dataclass(frozen=True, eq=False)
class EpisodeMoments:
    """n moments of one episode, `every` actions apart."""

    times_s: np.ndarray
    """(n,) after its beginning."""
    rate_hz: float
    tasks: tuple[str, ...]
    state: Mapping[str, np.ndarray]
    """(n, D) by signal, as recorded."""
    truth: np.ndarray
    """(n, H, A) recorded actions from each moment on; the last one repeated beyond the end."""
    there: np.ndarray
    """(n, H) bool: the action was recorded."""
    last: np.ndarray
    """(n, A): the action before each moment."""


class EpisodeReader:
    """Of any of a job's sets."""

    def __init__(self, asked: PolicyShape, every: int, options: StorageOptions | None = None) -> None:
        self.asked, self.every = asked, every
        self.reader, self.films = RowReader((*asked.state, *asked.action)), Films(options)

    def moments(self, of: RobotSet, place: int) -> EpisodeMoments:
        """Of the episode at a place of its set; its first frame is left out, which no action precedes. Raises `UserError`."""
        rows, asked = self.reader.episode(of, place), self.asked
        rate = asked.rate_hz or of.info.fps
        first = min(1, len(rows.time_s) - 1)
        span = rows.time_s[-1] - rows.time_s[first]
        times = rows.time_s[first] + np.arange(int(span * rate / self.every + 1e-6) + 1) * self.every / rate
        ahead = (times[:, None] + np.arange(asked.horizon) / rate).reshape(-1)
        truth, pad = self._joined(of, rows, asked.action, ahead)
        last, _ = self._joined(of, rows, asked.action, times - 1 / rate)
        state = {name: self._joined(of, rows, {name: width}, times)[0] for name, width in asked.state.items()}
        shape = (len(times), asked.horizon)
        tasks = tuple(_task(of, place, rows, time) for time in times)
        return EpisodeMoments(times, rate, tasks, state, truth.reshape(*shape, -1), ~pad.reshape(shape), last)

    def _joined(
        self, of: RobotSet, rows: EpisodeRows, names: Mapping[str, int], times: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(M, D) of signals one after another, and (M,) bool where one of them was not recorded."""
        parts, pads = [], []
        for name, width in names.items():
            values, pad = at_times(rows.signal(of, name), times)
            flat = values.reshape(len(times), -1).astype(np.float64)
            if flat.shape[1] != width:
                expected = f"{width}, as the policy has learned"
                raise UserError(f"signal {name} of {of.name}", f"{flat.shape[1]} values", expected)
            parts.append(flat)
            pads.append(pad)
        return np.concatenate(parts, 1), np.any(pads, axis=0)

    def pictures(self, of: RobotSet, place: int, times: np.ndarray) -> list[dict[str, np.ndarray]]:
        """(H, W, 3) uint8 by camera at each of the times (m,), of the films' own size. Raises `UserError`."""
        found: list[dict[str, np.ndarray]] = [{} for _ in times]
        for camera in self.asked.cameras:
            shots = shots_of(of, place, "" if camera == VIDEO else camera, times.tolist())
            shown = self.films.pictures(self.films.visit(shots[0].film, shots), None)
            for one, shot in zip(found, shots, strict=True):
                picture = shown[shot]
                if isinstance(picture, UserError):
                    raise picture
                one[camera] = np.ascontiguousarray(picture.transpose(1, 2, 0))
        return found


def _task(of: RobotSet, place: int, rows: EpisodeRows, time: float) -> str:
    number = None if rows.task is None else int(rows.task[np.abs(rows.time_s - time).argmin()])
    if number is None or number not in of.tasks:
        episode = of.episodes.number[place]
        raise ManifestError(
            f"task of episode {episode} of {of.name}", number, f"one of {len(of.tasks)} tasks of {of.base}"
        )
    return of.tasks[number]
