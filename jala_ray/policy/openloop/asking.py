"""Asks a policy at moments of an episode: as recorded, and with one thing taken away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from jala_ray.data.robots.sets import RobotSet
from jala_ray.policy.openloop.episodes import EpisodeMoments, EpisodeReader, PolicyShape
from jala_ray.policy.openloop.records import BLIND, DEAF, POLICY, STATELESS, SWAPPED, EpisodeRecord, ShownPicture
from jala_ray.serving.contract import Observation, Policy, acted
from jala_ray.types import UserError

AT_ONCE = 16
"""Moments whose pictures are in memory."""
SHOWN = 3
"""Moments of an episode whose pictures are kept."""
THUMBNAIL = 224
"""Pixels of their longer side, at most."""


@dataclass(frozen=True)
class Place:
    """An episode."""

    of: RobotSet
    place: int
    """In its set's `episodes`."""

    @property
    def number(self) -> int:
        return int(self.of.episodes.number[self.place])


@dataclass
class OpenLoop:
    """A policy and what it is asked about."""

    policy: Policy
    reader: EpisodeReader
    mean_state: Mapping[str, np.ndarray]
    """(D,) over training rows, by signal."""

    @property
    def asked(self) -> PolicyShape:
        return self.reader.asked

    def record(self, at: Place, other: Place | None) -> EpisodeRecord:
        """Of an episode; `other`: whose pictures are shown in place of its own. One that can't be read has its `failure`."""
        try:
            return self._record(at, other)
        except UserError as error:
            return EpisodeRecord(at.of.name, at.number, str(error))

    def _record(self, at: Place, other: Place | None) -> EpisodeRecord:
        moments = self.reader.moments(at.of, at.place)
        elsewhere = self._elsewhere(moments, other)
        askers: dict[str, dict[str, Any]] = {}
        answers: dict[str, list[np.ndarray]] = {}
        seen: list[ShownPicture] = []
        kept = set(np.linspace(0, len(moments.times_s) - 1, SHOWN).round().astype(int).tolist())
        for first in range(0, len(moments.times_s), AT_ONCE):
            group = range(first, min(first + AT_ONCE, len(moments.times_s)))
            own = self.reader.pictures(at.of, at.place, moments.times_s[group])
            others = self.reader.pictures(other.of, other.place, elsewhere[group]) if other is not None else []
            for i in group:
                observation = Observation(own[i - first], _at(moments, i), moments.tasks[i])
                words = other_task(at.of, moments.tasks[i], at.number)
                for name, asked in self._variants(observation, others[i - first] if others else None, words).items():
                    # An asker of its own for each, so that all have the same noise at the same moment.
                    answers.setdefault(name, []).append(self._answer(asked, askers.setdefault(name, {})))
                if i in kept:
                    seen += self._shown(observation, float(moments.times_s[i]))
        return EpisodeRecord(
            *(at.of.name, at.number, None, self.reader.every, moments.rate_hz, tuple(self.asked.action.items())),
            *(moments.tasks, tuple(seen), moments.times_s, moments.truth, moments.there, moments.last),
            held=self._held(moments),
            predicted={name: np.stack(many) for name, many in answers.items()},
        )

    def _elsewhere(self, moments: EpisodeMoments, other: Place | None) -> np.ndarray:
        """(n,) seconds in another episode that is as far along as each moment is in its own."""
        if other is None or not self.asked.cameras:
            return np.zeros(len(moments.times_s))
        end = other.of.seconds(other.place) - other.of.info.period_s
        return np.clip(moments.times_s / max(moments.times_s[-1], 1e-9), 0, 1) * max(end, 0.0)

    def _variants(
        self, seen: Observation, others: Mapping[str, np.ndarray] | None, words: str | None
    ) -> dict[str, Observation]:
        found = {POLICY: seen}
        if self.asked.cameras:
            blank = {name: np.zeros_like(picture) for name, picture in seen.pictures.items()}
            found[BLIND] = Observation(blank, seen.state, seen.instruction)
            if others is not None:
                found[SWAPPED] = Observation(others, seen.state, seen.instruction)
        if words is not None:
            found[DEAF] = Observation(seen.pictures, seen.state, words)
        if self.mean_state:
            found[STATELESS] = Observation(seen.pictures, self.mean_state, seen.instruction)
        return found

    def _answer(self, observation: Observation, state: dict[str, Any]) -> np.ndarray:
        """(H, A). Raises `UserError` for actions of another shape than its metadata say."""
        actions, expected = acted(self.policy.act(observation, state)), (self.asked.horizon, self.asked.size)
        if actions.shape != expected:
            raise UserError("actions", f"shape {actions.shape}", f"{expected}, as the policy's metadata say")
        return actions

    def _shown(self, observation: Observation, time_s: float) -> list[ShownPicture]:
        """What the model sees, where the policy tells."""
        tells = getattr(self.policy, "seen", None)
        pictures = dict(observation.pictures)
        if tells is not None:
            pictures = {name: picture.transpose(1, 2, 0) for name, picture in tells(observation).items()}
        return [ShownPicture(name, time_s, _jpeg(picture)) for name, picture in pictures.items()]

    def _held(self, moments: EpisodeMoments) -> np.ndarray:
        state = (
            np.concatenate(list(moments.state.values()), 1) if moments.state else np.zeros((len(moments.times_s), 0))
        )
        return state if state.shape[1] == self.asked.size else state[:, :0]


def _at(moments: EpisodeMoments, i: int) -> dict[str, np.ndarray]:
    return {name: values[i].astype(np.float32) for name, values in moments.state.items()}


def _jpeg(picture: np.ndarray) -> np.ndarray:
    """(n,) uint8: a file's bytes."""
    image, buffer = Image.fromarray(np.ascontiguousarray(picture)), BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(buffer, "JPEG", quality=85)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def other_task(of: RobotSet, task: str, number: int) -> str | None:
    """Another task's words of the set, by the episode's number; None where there is no other."""
    others = sorted({words for words in of.tasks.values() if words != task})
    return others[number % len(others)] if others else None
