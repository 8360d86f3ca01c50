"""What keys on a wire mean: one table for the robots and simulators that are known, and the same form for your own as JSON.

A convention reads a client's message into an `Observation`, and writes a policy's actions as that client expects them. Whatever turns a
picture over or a gripper round has a name here, and an inverse.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jala_ray.parsing import from_dict, suggest
from jala_ray.serving.contract import Observation
from jala_ray.types import ConfigError, UserError

Flip = Literal["none", "upside_down", "mirrored", "rotated_180"]
FLIPS: dict[Flip, tuple[slice, slice]] = {
    "none": (slice(None), slice(None)),
    "upside_down": (slice(None, None, -1), slice(None)),
    "mirrored": (slice(None), slice(None, None, -1)),
    "rotated_180": (slice(None, None, -1), slice(None, None, -1)),
}
"""How a picture (H, W, 3) on the wire lies beside the data set's; each is its own inverse."""
Gripper = Literal["open-1_closed+1", "open+1_closed-1", "open0_closed1", "open1_closed0"]
GRIPPERS: dict[Gripper, tuple[float, float]] = {
    "open-1_closed+1": (-1.0, 1.0),
    "open+1_closed-1": (1.0, -1.0),
    "open0_closed1": (0.0, 1.0),
    "open1_closed0": (1.0, 0.0),
}
"""(open, closed). robosuite, LIBERO and metaworld act by the first, DROID by the third, many RLDS sets by the last."""
ACTION = "action"
ANY = "*"
"""A key and a name that end with it stand for all keys with that beginning which no other line names."""


@dataclass(frozen=True)
class CameraKey:
    key: str
    """On the wire. `images/head` is also found as `head` within a map `images`."""
    name: str
    """The data set's: `observation.images.head`."""
    flip: Flip = "none"
    layout: Literal["hwc", "chw"] = "hwc"
    """As a client sends it; read is either."""
    required: bool = True


@dataclass(frozen=True)
class StateKey:
    key: str
    name: str
    """Lines of one name are joined in their order."""
    width: int = 0
    """0: any."""


@dataclass(frozen=True)
class ActionKey:
    key: str
    width: int = 0
    """Columns, in order; 0: all that are left. A key `action.*` stands for the policy's own parts."""


@dataclass(frozen=True)
class GripperRule:
    """Where wire and data set tell a gripper's opening differently."""

    of: str
    """`action`, or a state by the data set's name."""
    column: int
    wire: Gripper
    data: Gripper

    def to_data(self, values: np.ndarray) -> np.ndarray:
        return _moved(values, self.column, GRIPPERS[self.wire], GRIPPERS[self.data])

    def to_wire(self, values: np.ndarray) -> np.ndarray:
        return _moved(values, self.column, GRIPPERS[self.data], GRIPPERS[self.wire])


@dataclass(frozen=True)
class Convention:
    """A client's keys, and the data set's names for them."""

    cameras: tuple[CameraKey, ...]
    state: tuple[StateKey, ...]
    actions: tuple[ActionKey, ...] = (ActionKey("actions"),)
    instruction: tuple[str, ...] = ("prompt",)
    """The first that is there."""
    grippers: tuple[GripperRule, ...] = ()

    def read(self, message: Any) -> Observation:
        """A client's message. Raises `UserError` that names the key."""
        if not isinstance(message, Mapping):
            raise UserError("observation", type(message).__name__, "a map of keys")
        return Observation(self._pictures(message), self._state(message), self._instruction(message))

    def write(self, observation: Observation) -> dict[str, Any]:
        """The inverse of `read`: what a client of this convention sends."""
        message: dict[str, Any] = {}
        for line, key, name in _lines(self.cameras, observation.pictures, "name"):
            if name in observation.pictures:
                shown = observation.pictures[name][FLIPS[line.flip]]
                message[key] = np.ascontiguousarray(np.moveaxis(shown, -1, 0) if line.layout == "chw" else shown)
        states = {name: self._gripper(name, values, "to_wire") for name, values in observation.state.items()}
        begun = dict.fromkeys(states, 0)
        for line, key, name in _lines(self.state, states, "name"):
            if name not in states:
                raise UserError(name, sorted(states), "a state of the observation")
            end = begun[name] + (line.width or len(states[name]))
            message[key], begun[name] = states[name][begun[name] : end], end
        return message | {self.instruction[0].replace(ANY, "task"): observation.instruction}

    def answer(self, actions: np.ndarray, metadata: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Actions (H, A) of a policy by the client's keys. Raises `ConfigError` where their widths are not the actions' own."""
        whole, place, found = self._gripper(ACTION, actions, "to_wire"), 0, {}
        for line in self.parts(metadata):
            width = line.width or whole.shape[1] - place
            found[line.key], place = whole[:, place : place + width], place + width
        if place != whole.shape[1]:
            raise ConfigError("actions", f"{whole.shape[1]} columns", f"{place}, as {', '.join(found)} have together")
        return found

    def _pictures(self, message: Mapping[str, Any]) -> dict[str, np.ndarray]:
        found = {}
        for line, key, name in _lines(self.cameras, message, "key"):
            value = _value(message, key)
            if value is None and not line.required:
                continue
            shown = picture(key, _there(message, key, value))[FLIPS[line.flip]]
            found[name] = np.array(shown, order="C")  # the policy's own: bytes of a message can't be written to
        return found

    def _state(self, message: Mapping[str, Any]) -> dict[str, np.ndarray]:
        parts: dict[str, list[np.ndarray]] = {}
        for line, key, name in _lines(self.state, message, "key"):
            values = vector(key, _there(message, key, _value(message, key)))
            if line.width and len(values) != line.width:
                raise UserError(key, f"{len(values)} values", f"{line.width}")
            parts.setdefault(name, []).append(values)
        return {name: self._gripper(name, np.concatenate(values), "to_data") for name, values in parts.items()}

    def _instruction(self, message: Mapping[str, Any]) -> str:
        for asked in self.instruction:
            for key in _matching(asked, message):
                return sentence(key, _value(message, key))
        raise UserError(" or ".join(self.instruction), None, "the instruction, as text")

    def _gripper(self, name: str, values: np.ndarray, way: Literal["to_data", "to_wire"]) -> np.ndarray:
        for rule in self.grippers:
            if rule.of == name:
                values = getattr(rule, way)(values)
        return values

    def parts(self, metadata: Mapping[str, Any]) -> Iterator[ActionKey]:
        """The actions' keys and columns, those of the policy in place of `*`."""
        for line in self.actions:
            if not line.key.endswith(ANY):
                yield line
                continue
            widths = metadata.get(ACTION, {})
            for name, width in widths.items() if isinstance(widths, Mapping) else ():
                yield ActionKey(name if name.startswith(line.key[:-1]) else line.key[:-1] + name, width)


def picture(key: str, value: Any) -> np.ndarray:
    """(H, W, 3) uint8 of a client's picture: either layout, bytes or floats in 0 to 1. Raises `UserError`."""
    expected = "(H, W, 3) or (3, H, W), uint8 or floats in 0 to 1"
    if (
        not isinstance(value, np.ndarray)
        or value.ndim != 3
        or 0 in value.shape
        or 3 not in (value.shape[0], value.shape[2])
    ):
        raise UserError(key, value.shape if isinstance(value, np.ndarray) else type(value).__name__, expected)
    laid = value if value.shape[2] == 3 else np.moveaxis(value, 0, -1)
    if laid.dtype == np.uint8:
        return laid
    if laid.dtype.kind != "f" or not (np.isfinite(laid).all() and laid.min() >= 0 and laid.max() <= 1):
        raise UserError(key, f"{laid.dtype} outside 0 to 1" if laid.dtype.kind == "f" else str(laid.dtype), expected)
    return np.rint(laid * 255).astype(np.uint8)


def vector(key: str, value: Any) -> np.ndarray:
    """(D,) float32, finite. Raises `UserError`."""
    try:
        with np.errstate(over="ignore"):  # what float32 can't hold is refused below
            found = np.atleast_1d(np.asarray(value, np.float32))
    except (ValueError, TypeError, OverflowError):
        raise UserError(key, type(value).__name__, "(D,) numbers") from None
    if found.ndim != 1 or not np.isfinite(found).all():
        got = f"shape {found.shape}" if found.ndim != 1 else "values that are not finite"
        raise UserError(key, got, "(D,) finite numbers")
    return found


def sentence(key: str, value: Any) -> str:
    """Text, also within lists and arrays of one, as GR00T's clients send it. Raises `UserError`."""
    while isinstance(value, (list, tuple, np.ndarray)) and np.size(value) == 1:
        value = value[0] if isinstance(value, (list, tuple)) else value.reshape(-1)[0]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        raise UserError(key, type(value).__name__, "the instruction, as text")
    return str(value)


def _moved(values: np.ndarray, column: int, given: tuple[float, float], asked: tuple[float, float]) -> np.ndarray:
    if not -values.shape[-1] <= column < values.shape[-1]:
        raise ConfigError("gripper's column", column, f"one of {values.shape[-1]}")
    moved = np.array(values)
    share = (moved[..., column] - given[0]) / (given[1] - given[0])
    moved[..., column] = asked[0] + share * (asked[1] - asked[0])
    return moved


def _lines(lines: Any, there: Mapping[str, Any], by: Literal["key", "name"]) -> Iterator[tuple[Any, str, str]]:
    """(line, key, name) of every line, those with `*` once for each key (or name) that is there."""
    named = {getattr(line, by) for line in lines}
    for line in lines:
        if not getattr(line, by).endswith(ANY):
            yield line, line.key, line.name
            continue
        start = getattr(line, by)[:-1]
        for word in there:
            if isinstance(word, str) and word.startswith(start) and word not in named:
                rest = word[len(start) :]
                yield line, line.key[:-1] + rest, line.name[:-1] + rest


def _matching(asked: str, message: Mapping[str, Any]) -> list[str]:
    if asked.endswith(ANY):
        return [key for key in message if isinstance(key, str) and key.startswith(asked[:-1])]
    return [asked] if _value(message, asked) is not None else []


def _value(message: Mapping[str, Any], key: str) -> Any:
    """The value of a key, or of a path of maps."""
    if key in message:
        return message[key]
    first, _, rest = key.partition("/")
    inner = message.get(first)
    return _value(inner, rest) if rest and isinstance(inner, Mapping) else None


def _there(message: Mapping[str, Any], key: str, value: Any) -> Any:
    if value is None:
        raise UserError(key, sorted(map(str, message)), "a key of the observation", suggest(key, map(str, message)))
    return value


_LIBERO_CAMERAS = (
    CameraKey("observation/image", "observation.images.image"),
    CameraKey("observation/wrist_image", "observation.images.wrist_image"),
)
_LIBERO_STATE = (StateKey("observation/state", "observation.state", 8),)
_ARMS = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
CONVENTIONS: dict[str, Convention] = {
    "libero": Convention(_LIBERO_CAMERAS, _LIBERO_STATE),
    "libero_raw": Convention(
        tuple(CameraKey(line.key, line.name, "rotated_180") for line in _LIBERO_CAMERAS), _LIBERO_STATE
    ),
    "libero_rlds": Convention(
        _LIBERO_CAMERAS,
        _LIBERO_STATE,
        grippers=(GripperRule(ACTION, -1, wire="open-1_closed+1", data="open1_closed0"),),
    ),
    "droid": Convention(
        (
            CameraKey("observation/exterior_image_1_left", "observation.images.exterior_1_left"),
            CameraKey("observation/wrist_image_left", "observation.images.wrist_left"),
        ),
        (
            StateKey("observation/joint_position", "observation.state", 7),
            StateKey("observation/gripper_position", "observation.state", 1),
        ),
    ),
    "aloha": Convention(
        tuple(
            CameraKey(f"images/{arm}", f"observation.images.{arm}", layout="chw", required=arm == "cam_high")
            for arm in _ARMS
        ),
        (StateKey("state", "observation.state", 14),),
    ),
    "lerobot": Convention(
        (CameraKey("observation.image*", "observation.image*"),),
        (StateKey("observation.state*", "observation.state*"),),
        instruction=("task",),
    ),
    "groot": Convention(
        (CameraKey("video.*", "video.*"),),
        (StateKey("state.*", "state.*"),),
        actions=(ActionKey("action.*"),),
        instruction=("annotation.*", "language.*"),
    ),
}
"""openpi's clients, lerobot's own names, and GR00T's. `libero` gets pictures as openpi's client turns them, `libero_raw` as the simulator
renders them (upside down and mirrored); `libero_rlds` is for a policy whose data set says 1 for an open gripper, where LIBERO wants -1.
"""


def convention(given: str) -> Convention:
    """By its name, or from a JSON file with the fields of `Convention`. Raises `ConfigError`."""
    if given in CONVENTIONS:
        return CONVENTIONS[given]
    if not given.endswith(".json"):
        expected = f"one of {', '.join(CONVENTIONS)}, or a JSON file"
        raise ConfigError("convention", given, expected, suggest(given, CONVENTIONS))
    try:
        values = json.loads(Path(given).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError("convention", given, "a JSON file that can be read", str(error)) from None
    if not isinstance(values, dict):
        raise ConfigError("convention", given, "an object")
    return from_dict(Convention, values, "convention.")
