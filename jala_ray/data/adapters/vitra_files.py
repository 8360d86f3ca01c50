"""VITRA's episode files: a pickled dict, every field of which is checked before anything is made of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jala_ray import storage
from jala_ray.data.adapters.base import parsing
from jala_ray.hands.unpickle import RestrictedUnpickler
from jala_ray.types import HAND_NAMES, UserError

Range = tuple[int, int]
ROTATION_ATOL = 1e-2
"""By so much R R^T may differ from the identity: half precision does by 2e-3."""


@dataclass(frozen=True)
class EpisodeHand:
    """One hand over an episode's T frames, each in its own camera."""

    valid: np.ndarray
    """(T,) bool."""
    orient: np.ndarray
    """(T, 3, 3) rotation of the wrist."""
    wrist: np.ndarray
    """(T, 3) the wrist joint, m."""
    fingers: np.ndarray
    """(T, 15, 3, 3) rotations of the fingers' joints."""
    beta: np.ndarray
    """(10,) MANO shape."""


@dataclass(frozen=True)
class Episode:
    """An episode of T frames."""

    video: str
    """The video's name, without its suffix."""
    video_frame: np.ndarray
    """(T,) int: which frame of the video each is, counted from 0 in the order in which they are shown."""
    intrinsics: np.ndarray
    """(3, 3)."""
    extrinsics: np.ndarray
    """(T, 3, 4) world -> camera."""
    hands: tuple[EpisodeHand, EpisodeHand]
    """(left, right)."""
    ranges: dict[Range, list[str]]
    """Frames [first, last) -> instruction and its rephrasings."""

    @classmethod
    def read(cls, uri: str) -> Episode:
        """Raises UserError that names the field, what was found and what was expected."""
        content = read_episode(uri)
        fields = _Fields(content, "")
        frame = fields.numbers("video_decode_frame", ("T",), whole=True).astype(np.int64)
        count = len(frame)
        extrinsics = fields.numbers("extrinsics", (count, (3, 4), 4))[:, :3]
        hands = [_hand(fields.part(side), count) for side in HAND_NAMES]
        with parsing("text, text_rephrase", "for each hand a list of (text, (first, last))"):
            ranges = instructed_ranges(content)
        if not ranges:
            raise UserError("text", content["text"], "an instruction with a frame range")
        intrinsics = fields.numbers("intrinsics", (3, 3))
        return cls(fields.text("video_name"), frame, intrinsics, extrinsics, (hands[0], hands[1]), ranges)


def read_episode(uri: str) -> dict[str, Any]:
    """The dict in an episode's .npy, unpickled without letting the pickle run anything. Raises UserError."""
    file = io.BytesIO(storage.read_bytes(uri))
    try:
        form = np.lib.format
        old = form.read_magic(file) == (1, 0)
        (form.read_array_header_1_0 if old else form.read_array_header_2_0)(file)
        episode = RestrictedUnpickler(file).load().item()
    except Exception as error:  # a hostile or damaged pickle can fail in any way; all of them mean: refused
        raise UserError(uri, f"{type(error).__name__}: {error}", "a .npy with one pickled dict") from error
    if not isinstance(episode, dict):
        raise UserError(uri, type(episode).__name__, "a .npy with one pickled dict")
    return episode


@dataclass(frozen=True)
class _Fields:
    """A dict whose fields are named in the errors about them."""

    content: Mapping[str, Any]
    prefix: str

    def value(self, name: str) -> Any:
        if name not in self.content:
            raise UserError(f"{self.prefix}{name}", "no such field", "a VITRA episode's field")
        return self.content[name]

    def part(self, name: str) -> _Fields:
        value = self.value(name)
        if not isinstance(value, dict):
            raise UserError(f"{self.prefix}{name}", value, "a dict of fields")
        return _Fields(value, f"{self.prefix}{name}.")

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str):
            raise UserError(f"{self.prefix}{name}", value, "a text")
        return str(value)

    def numbers(self, name: str, shape: tuple[Any, ...], *, whole: bool = False) -> np.ndarray:
        """An array of float64. `shape` has for each axis its length, the lengths it may have, or a letter for any."""
        where = f"{self.prefix}{name}"
        spelled = ", ".join(" or ".join(map(str, n)) if isinstance(n, tuple) else str(n) for n in shape)
        expected = f"numbers of shape ({spelled}{',' if len(shape) == 1 else ''})"
        with parsing(where, expected):
            array = np.array(self.value(name), np.float64)
        fits = len(array.shape) == len(shape) and all(
            isinstance(want, str) or found in (want if isinstance(want, tuple) else (want,))
            for found, want in zip(array.shape, shape, strict=True)
        )
        if not fits:
            raise UserError(where, f"shape {array.shape}", expected)
        if whole and not (np.isfinite(array).all() and (array == np.round(array)).all() and (abs(array) < 2**53).all()):
            raise UserError(where, "other numbers", "whole numbers")
        return array

    def rotations(self, name: str, shape: tuple[int, ...], valid: np.ndarray) -> np.ndarray:
        """Rotation matrices; those of frames that are not valid are the identity, whatever the file has there."""
        array = self.numbers(name, shape)
        array[~valid] = np.eye(3)
        with np.errstate(all="ignore"):
            error = np.abs(array @ np.swapaxes(array, -1, -2) - np.eye(3)).max(initial=0)
            proper = error <= ROTATION_ATOL and (np.linalg.det(array) > 0).all()
        if not proper:  # NaN compares False.
            raise UserError(f"{self.prefix}{name}", f"R R^T off the identity by {error:.2g}", "rotation matrices")
        return array


def _hand(fields: _Fields, count: int) -> EpisodeHand:
    kept = fields.numbers("kept_frames", (count,))
    if not np.isin(kept, (0, 1)).all():
        raise UserError(f"{fields.prefix}kept_frames", np.unique(kept)[:5].tolist(), "zeros and ones")
    valid = kept.astype(bool)
    if not valid.any():  # Placeholders, of whatever shape.
        nothing = np.zeros(0)
        return EpisodeHand(valid, nothing, nothing, nothing, nothing)
    return EpisodeHand(
        valid=valid,
        orient=fields.rotations("global_orient_camspace", (count, 3, 3), valid),
        wrist=fields.numbers("joints_camspace", (count, 21, 3))[:, 0],
        fingers=fields.rotations("hand_pose", (count, 15, 3, 3), valid),
        beta=_beta(fields, count),
    )


def _beta(fields: _Fields, count: int) -> np.ndarray:
    """The hand's shape (10,); one for all frames, (1, 10), or the same in each, (T, 10), is read too."""
    value = fields.value("beta")
    with parsing(f"{fields.prefix}beta", "numbers of shape (10,)"):
        shape = np.shape(value)
    if len(shape) != 2:
        return fields.numbers("beta", (10,)).astype(np.float32)
    betas = fields.numbers("beta", ((1, count), 10)).astype(np.float32)
    if not np.allclose(betas, betas[0], atol=1e-6, equal_nan=True):
        raise UserError(f"{fields.prefix}beta", "a shape that changes from frame to frame", "one shape of the hand")
    return betas[0]


def instructed_ranges(episode: Mapping[str, Any]) -> dict[Range, list[str]]:
    """Frame ranges [first, last) that have an instruction, with its rephrasings.

    A hand without an action has the range (0, 0). Two hands instructed over one range give one clip.
    """
    found: dict[Range, dict[str, list[str]]] = {}
    for side in HAND_NAMES:
        phrased = {_range(frames): texts for texts, frames in episode["text_rephrase"][side]}
        for text, frames in episode["text"][side]:
            if (span := _range(frames))[1] > span[0]:
                found.setdefault(span, {})[side] = _distinct([text, *phrased.get(span, [])])
    joined = {}
    for span, by_side in sorted(found.items()):
        if len(by_side) == 1:
            joined[span] = next(iter(by_side.values()))
        else:
            left, right = (by_side[side] for side in HAND_NAMES)
            joined[span] = [f"Left hand: {a}. Right hand: {b}" for a, b in zip(left, right, strict=False)]
    return joined


def _range(frames: Any) -> Range:
    first, last = frames
    return int(first), int(last)


def _distinct(texts: list[Any]) -> list[str]:
    if bad := [text for text in texts if not isinstance(text, str)]:
        raise UserError("text, text_rephrase", bad[0], "texts")
    return list(dict.fromkeys(text.strip().rstrip(".") for text in texts if text.strip()))
