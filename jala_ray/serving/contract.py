"""What a policy is, for whoever asks it: servers, simulators, tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jala_ray.types import ConfigError, UserError

REPLAY_TOLERANCE = 1e-5
"""Of a replayed training row, relative to each dimension's largest magnitude: float32 keeps 1e-7, statistics that are absent none."""


@dataclass(frozen=True)
class Observation:
    """What a robot saw at one moment."""

    pictures: Mapping[str, np.ndarray]
    """(H, W, 3) uint8 by camera, e.g. `observation.images.head`; any size, the policy resizes."""
    state: Mapping[str, np.ndarray]
    """(D,) float32 by signal, e.g. `observation.state`, in the units of the data set that the policy learned from."""
    instruction: str


class Policy(Protocol):
    """Acts. It may have `replay() -> (expected, got)`: actions of training rows as the data set has them, and as they come back from
    the policy's own normalisation, both (..., A); `proven` compares them before anything is served.
    """

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What clients are told: plain values and arrays.

        Servers read, where they are there, `cameras` (names), `state` and `action` ({name: width}, in the order of columns).
        """
        ...

    def act(self, observation: Observation, state: dict[str, Any] | None) -> np.ndarray:
        """(H, A) float32 actions in the robot's units. `state` is the asker's own, kept between its calls and empty at first; None: none
        is kept.
        """
        ...


def proven(policy: Policy) -> bool:
    """Whether the policy showed that it un-normalises; False where it offers no `replay`. Raises `ConfigError` where it does not."""
    replay = getattr(policy, "replay", None)
    if replay is None:
        return False
    expected, got = (np.asarray(array, np.float64) for array in replay())
    remedy = "The checkpoint's statistics are not those that its actions were normalised by: export it again."
    if expected.shape != got.shape or not expected.size:
        raise ConfigError("replay", f"actions of shape {got.shape}", f"those of {expected.shape}, not empty", remedy)
    rows = expected.reshape(-1, expected.shape[-1])
    scale = np.abs(rows).max(0)
    off = np.abs(got.reshape(rows.shape) - rows) / np.where(scale > 0, scale, 1.0)
    if not off.max() <= REPLAY_TOLERANCE:  # NaN is no proof either
        worst = int(np.unravel_index(np.argmax(np.where(np.isnan(off), np.inf, off)), off.shape)[1])
        field = f"replay of a training row, dimension {worst}"
        raise ConfigError(field, f"off by {off[:, worst].max():.3g}", f"at most {REPLAY_TOLERANCE:g} relative", remedy)
    return True


def fitting(observation: Observation, metadata: Mapping[str, Any]) -> Observation:
    """The observation, if it has the cameras and state that the policy names. Raises `UserError`."""
    for kind, there in (("cameras", observation.pictures), ("state", observation.state)):
        missing = [name for name in metadata.get(kind, ()) if name not in there]
        if missing:
            remedy = "Name the client's keys in a convention (--convention FILE.json)."
            raise UserError(f"observation's {kind}", sorted(there), f"also {', '.join(missing)}", remedy)
    widths = metadata.get("state", {})
    for name, width in widths.items() if isinstance(widths, Mapping) else ():
        if len(observation.state[name]) != width:
            raise UserError(name, f"{len(observation.state[name])} values", f"{width}, as the policy has learned")
    return observation


def acted(actions: Any) -> np.ndarray:
    """A policy's answer as (H, A) float32. Raises `UserError` where it is none that a robot may execute."""
    found = np.asarray(actions, np.float32)
    if found.ndim != 2 or not found.size:
        raise UserError("actions", f"shape {found.shape}", "(H, A) of a policy")
    if not np.isfinite(found).all():
        raise UserError("actions", "values that are not finite", "finite ones", "Nothing is sent to the robot.")
    return found
