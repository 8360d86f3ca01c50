"""Composition + scene -> exact hand poses and object motion, in the world frame.

World frame: x right, y away from the person, z up, table top at z = 0; metres, radians. Time is model time.
Every verb is written once, as a hand pose that depends on a progress q in [0, 1]: q = 0 is the hand ready at
the object, q = 1 the act done. A clip is an approach (start pose -> ready), then q goes 0, 1, back, again;
each stroke is a minimum-jerk move of 1 s (fast) or 2 s (slow) of model time. So two boundaries one chunk
apart always fall on different stages, and composition, scene and start pose alone determine the motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from jala_ray.data.synthetic.grammar import Composition, Verb
from jala_ray.types import Hand

STROKE_SECONDS = {"fast": 1.0, "slow": 2.0}
_BACK, _AGAIN = (0.0, 0.1), (1.0, 0.92)
"""Progress at the ends of later strokes, in turn: never quite the same twice."""
_Z = np.array([0.0, 0.0, 1.0])

# Finger shapes: curl of index, middle, ring, pinky; spread; thumb opposition; thumb flexion. All 0..1.
_OPEN = np.array([0.05, 0.05, 0.08, 0.1, 0.5, 0.15, 0.0])
_FLAT = np.array([0.03, 0.0, 0.0, 0.03, 0.1, 0.1, 0.1])
_RELAXED = np.array([0.25, 0.28, 0.32, 0.36, 0.15, 0.35, 0.2])
_CUPPED = np.array([0.27, 0.27, 0.28, 0.3, 0.25, 0.8, 0.1])
_GRASP = np.array([0.55, 0.56, 0.58, 0.6, 0.1, 1.0, 0.45])
_HOOK = np.array([0.6, 0.6, 0.6, 0.6, 0.05, 0.3, 0.2])
_FIST = np.array([0.95, 0.95, 0.95, 0.95, 0.0, 0.8, 0.8])
_PINCH_OPEN = np.array([0.25, 0.12, 0.1, 0.12, 0.4, 0.8, 0.0])
_PINCH = np.array([0.5, 0.16, 0.12, 0.15, 0.4, 1.0, 0.4])
_POINT = np.array([0.03, 0.85, 0.92, 0.95, 0.05, 0.8, 0.7])

_FLEX = np.radians([70.0, 95.0, 60.0])  # of a finger's three joints at curl 1


@dataclass(frozen=True)
class HandFrame:
    """Anatomical directions of one side's rest pose (unit vectors, mesh frame) and length in metres."""

    side: Hand
    forward: np.ndarray
    thumb: np.ndarray
    palm: np.ndarray
    fingers: np.ndarray
    """(5, 3) rest direction of index, middle, pinky, ring, thumb (MANO joint order)."""
    length: float

    @classmethod
    def from_joints(cls, joints: np.ndarray, side: Hand) -> HandFrame:
        """From the 21 rest joints (MANO order, then thumb, index, middle, ring, pinky tips)."""
        wrist, index, middle, pinky = joints[0], joints[1], joints[4], joints[7]
        forward = _unit(middle - wrist)
        thumb = index - pinky
        thumb = _unit(thumb - (thumb @ forward) * forward)
        palm = np.cross(thumb, forward) if side is Hand.RIGHT else np.cross(forward, thumb)
        tips = joints[[17, 18, 20, 19, 16]]
        fingers = _unit(tips - joints[[1, 4, 7, 10, 13]])
        return cls(side, forward, thumb, palm, fingers, float(np.linalg.norm(joints[18] - wrist)))

    def theta(self, shape: np.ndarray) -> np.ndarray:
        """Finger shapes (T, 7) -> MANO finger rotations (T, 15, 3), axis-angle."""
        theta = np.zeros((len(shape), 15, 3))
        spread_axis = np.cross(self.forward, self.thumb)
        for finger, (column, toward_thumb) in enumerate(((0, 1.0), (1, 0.15), (3, -1.1), (2, -0.5))):
            axis = _unit(np.cross(self.fingers[finger], self.palm))
            angles = shape[:, column, None] * _FLEX
            spread = Rotation.from_rotvec(np.radians(14) * toward_thumb * shape[:, 4, None] * spread_axis)
            theta[:, 3 * finger] = (spread * Rotation.from_rotvec(angles[:, :1] * axis)).as_rotvec()
            for joint in (1, 2):
                theta[:, 3 * finger + joint] = angles[:, joint, None] * axis
        oppose = Rotation.from_rotvec(np.radians(55) * shape[:, 5, None] * np.cross(self.thumb, self.palm))
        close = np.cross(self.fingers[4], _unit(self.palm - self.thumb))
        close = _unit(close)
        theta[:, 12] = (oppose * Rotation.from_rotvec(np.radians(15) * shape[:, 6, None] * close)).as_rotvec()
        theta[:, 13] = np.radians(35) * shape[:, 6, None] * close
        theta[:, 14] = np.radians(55) * shape[:, 6, None] * close
        return theta

    def rotation(self, forward: np.ndarray, palm: np.ndarray) -> Rotation:
        """Wrist rotations that point the hand along `forward` (T, 3) with its palm towards `palm` (T, 3)."""
        forward = _unit(forward)
        palm = _unit(palm - (palm * forward).sum(-1, keepdims=True) * forward)
        sign = 1.0 if self.side is Hand.RIGHT else -1.0
        world = np.stack([forward, sign * np.cross(forward, palm), palm], -1)
        return Rotation.from_matrix(world @ np.stack([self.forward, self.thumb, self.palm], -1).T)


@dataclass(frozen=True)
class Prop:
    """The target object as motion sees it: base centre on the table (3,), radius and height, metres."""

    position: np.ndarray
    radius: float
    height: float


@dataclass(frozen=True)
class Start:
    """Start state, seen in the first frame: the hand ready (`at_object`), or resting at its home."""

    at_object: bool
    home: np.ndarray
    """(2, 3) place of the left and right palm, metres."""
    pitch: np.ndarray
    roll: np.ndarray
    """(2,) down-tilt of the hand and turn of the palm towards the middle, radians."""


@dataclass(frozen=True)
class HandMotion:
    """theta (T, 15, 3), rot (T, 3) axis-angle, wrist joint (T, 3) metres, all in the world frame."""

    theta: np.ndarray
    rot: np.ndarray
    wrist: np.ndarray


@dataclass(frozen=True)
class PropMotion:
    """position (T, 3) metres, yaw (T,) rad, squash (T,): 1 = untouched, below = pressed in."""

    position: np.ndarray
    yaw: np.ndarray
    squash: np.ndarray


def draw_start(rng: np.random.Generator, at_object_share: float) -> Start:
    """A random start state; a composition and a start state determine the motion up to a small jitter."""
    home = np.array([[-0.15, 0.06, 0.06], [0.15, 0.06, 0.06]]) + rng.uniform(-0.03, 0.03, (2, 3))
    return Start(bool(rng.random() < at_object_share), home, rng.uniform(-0.1, 0.25, 2), rng.uniform(0, 0.6, 2))


def animate(
    c: Composition,
    prop: Prop,
    start: Start,
    frames: dict[Hand, HandFrame],
    time_s: np.ndarray,
    rng: np.random.Generator,
) -> tuple[dict[Hand, HandMotion], PropMotion]:
    """Poses of the acting hand(s) and of the target object at model times `time_s` (T,), seconds."""
    stroke = STROKE_SECONDS[c.speed] * rng.uniform(0.985, 1.015)
    strokes = time_s / stroke + (1.0 if start.at_object else 0.0)
    course = _Course(time_s, _min_jerk(np.clip(strokes, 0, 1)), _progress(strokes - 1))
    sides = {"left": [Hand.LEFT], "right": [Hand.RIGHT], "both": [Hand.LEFT, Hand.RIGHT]}[c.hand]
    act = _Act(c, prop)
    hands = {side: _move(act, frames[side], start, course, len(sides) == 2, rng) for side in sides}
    return hands, act.prop_motion(course.q)


class _Course(NamedTuple):
    """How far a clip's motion is at each of its T moments."""

    time_s: np.ndarray
    """(T,) model time, seconds."""
    approach: np.ndarray
    """(T,) from the rest (0) to the object (1)."""
    q: np.ndarray
    """(T,) progress of the act."""


class _Act:
    """One verb at one object: where the hand is at progress q, and what that does to the object."""

    def __init__(self, c: Composition, prop: Prop) -> None:
        self.verb: Verb = c.verb
        self.prop = prop
        self.large = c.amplitude == "large"
        # Sideways is towards the middle of the table; from the middle, to the acting hand's own side.
        x = prop.position[0]
        self.aside = -np.sign(x) if abs(x) > 0.07 else (-1.0 if c.hand == "left" else 1.0)
        self.shift = np.array(
            {
                "reach": (0, 0, 0),
                "push": (0, 0.17 if self.large else 0.08, 0),
                "pull": (0, -0.14 if self.large else -0.07, 0),
                "slide": (self.aside * (0.18 if self.large else 0.09), 0, 0),
                "lift": (0, -0.02, 0.14 if self.large else 0.075),
                "twist": (0, 0, 0),
                "pinch": (0, -0.07 if self.large else -0.035, 0.11 if self.large else 0.06),
                "wave": (self.aside * (0.24 if self.large else 0.11), 0, 0),
                "tap": (0, -0.06 if self.large else -0.03, 0.14 if self.large else 0.075),
                "squeeze": (0, -0.03, 0.045 if self.large else 0.03),
            }[c.verb],
            float,
        )
        self.turn = np.radians(100 if self.large else 55) if c.verb == "twist" else 0.0

    def contact(self, q: np.ndarray, home: np.ndarray) -> np.ndarray:
        """Where the gripping point of the hand is at progress q (T,) -> (T, 3)."""
        r, h = self.prop.radius, self.prop.height
        above = {
            "reach": (0, 0, h + 0.03),
            "push": (0, -r - 0.02, 0.085),
            "pull": (0, r + 0.01, h * 0.6 + 0.01),
            "slide": (0, 0, h + 0.015),
            "lift": (0, 0, h * 0.6 + 0.01),
            "twist": (0, 0, h),
            "pinch": (0, 0, h),
            "wave": (-0.35 * self.shift[0], -0.02, h + 0.08),
            "tap": (0, 0, h + 0.01),
            "squeeze": (0, 0, h * 0.7 + 0.01),
        }[self.verb]
        ready = self.prop.position + np.array(above)
        if self.verb == "reach":  # a small reach stops halfway; the act is the withdrawal
            ready = home + (1.0 if self.large else 0.55) * (ready - home)
            return ready + q[:, None] * (0.75 * (home + np.array([0, 0, 0.05]) - ready))
        return ready + q[:, None] * self.shift

    def attitude(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(pitch, roll) (T,): fingers down-tilt, palm turned towards the middle, radians."""
        pitch, roll = {
            "reach": (0.3, 0.3),
            "push": (-0.95, 0.0),
            "pull": (0.55, 0.0),
            "slide": (0.12, 0.0),
            "lift": (0.25, 1.1),
            "twist": (0.7, 0.45),
            "pinch": (0.6, 0.5),
            "wave": (-0.9, 0.0),
            "tap": (0.55, 0.3),
            "squeeze": (0.4, 0.55),
        }[self.verb]
        tilt = {"wave": 0.0, "tap": -0.45 if self.large else -0.25, "lift": -0.15}
        return pitch + tilt.get(self.verb, 0.0) * q, np.full_like(q, roll)

    def fingers(self, approach: np.ndarray, q: np.ndarray) -> np.ndarray:
        """Finger shapes (T, 7); a gripping hand closes in the last third of its approach."""
        opened, ready, done = {
            "reach": (_OPEN, _OPEN, _FIST * 0.75),
            "push": (_FLAT, _FLAT, _FLAT),
            "pull": (_CUPPED, _HOOK, _HOOK),
            "slide": (_FLAT, _FLAT, _FLAT),
            "lift": (_CUPPED, _GRASP, _GRASP),
            "twist": (_CUPPED, _GRASP, _GRASP),
            "pinch": (_PINCH_OPEN, _PINCH, _PINCH),
            "wave": (_OPEN, _OPEN, _OPEN),
            "tap": (_POINT, _POINT, _POINT),
            "squeeze": (_CUPPED, _CUPPED, _FIST if self.large else 0.4 * _CUPPED + 0.6 * _FIST),
        }[self.verb]
        shape = np.minimum(1.0, 2.2 * approach)[:, None] * (opened - _RELAXED) + _RELAXED
        close = np.clip((approach - 0.65) / 0.35, 0, 1)[:, None]
        shape = shape + close * (ready - opened)
        return shape + q[:, None] * (done - ready)

    def prop_motion(self, q: np.ndarray) -> PropMotion:
        """What the act does to the object: carried along, left where it was pushed, turned, or squeezed."""
        carried = q if self.verb in ("lift", "pinch", "slide") else np.zeros_like(q)
        if self.verb in ("push", "pull"):
            carried = np.maximum.accumulate(q)
        pressed = (0.4 if self.large else 0.18) * q if self.verb == "squeeze" else 0.0 * q
        return PropMotion(self.prop.position + carried[:, None] * self.shift, self.turn * self.aside * q, 1.0 - pressed)


def _move(
    act: _Act,
    frame: HandFrame,
    start: Start,
    course: _Course,
    two_handed: bool,
    rng: np.random.Generator,
) -> HandMotion:
    time_s, approach, q = course
    side, n = frame.side, len(q)
    sign = 1.0 if side is Hand.RIGHT else -1.0
    home = start.home[side]
    contact = act.contact(q, home)
    if two_handed:
        contact = contact + np.array([sign * (act.prop.radius + 0.045), 0, 0])
    shoulder = np.array([sign * 0.17, -0.32, 0.0])

    def attitude(point: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> tuple[Rotation, np.ndarray, np.ndarray]:
        ahead = _unit((point - shoulder) * [1, 1, 0])
        forward = np.cos(pitch)[:, None] * ahead - np.sin(pitch)[:, None] * _Z
        inward = sign * np.cross(_Z, forward)
        down = -_Z + forward * forward[:, 2:]
        palm = np.cos(roll)[:, None] * _unit(down) + np.sin(roll)[:, None] * _unit(inward)
        turned = Rotation.from_rotvec(act.turn * act.aside * q[:, None] * _Z)
        forward, palm = turned.apply(forward), turned.apply(palm)
        return frame.rotation(forward, palm), forward, palm

    # The gripping point, as shares of the hand's length ahead of the wrist and off the palm.
    ahead, off = {
        "tap": (0.92, 0.05),
        "pinch": (0.72, 0.32),
        "slide": (0.6, 0.12),
        "push": (0.55, 0.12),
        "pull": (0.72, 0.22),
    }.get(act.verb, (0.62, 0.26))
    rotation, forward, palm = attitude(contact, *act.attitude(q))
    wrist = contact - frame.length * (ahead * forward + off * palm)
    wrist[:, 2] = np.maximum(wrist[:, 2], 0.03)  # the forearm stays above the table

    rest, forward, palm = attitude(
        home[None] + 0 * contact, np.full(n, start.pitch[side]), np.full(n, start.roll[side])
    )
    rest_wrist = home - frame.length * (0.6 * forward[:1] + 0.2 * palm[:1])
    rest_wrist[:, 2] = np.maximum(rest_wrist[:, 2], 0.04)
    wrist = rest_wrist + approach[:, None] * (wrist - rest_wrist)
    wrist[:, 2] += 0.035 * np.sin(np.pi * approach)  # hands arrive in an arc
    delta = (rest.inv() * rotation).as_rotvec()
    rotation = rest * Rotation.from_rotvec(approach[:, None] * delta)

    fingers = act.fingers(approach, q) + 0.015 * _sway(time_s, 7, rng)
    wrist = wrist + 0.0015 * _sway(time_s, 3, rng)
    rotation = Rotation.from_rotvec(0.012 * _sway(time_s, 3, rng)) * rotation
    return HandMotion(frame.theta(fingers), rotation.as_rotvec(), wrist)


def _progress(strokes: np.ndarray) -> np.ndarray:
    """Strokes after the approach -> q: 0, 1, back, again, ...; 0 before."""
    strokes = np.clip(strokes, 0, None)
    ends = [0.0, 1.0]
    while len(ends) < strokes.max(initial=0) + 2:
        turn = len(ends) // 2
        ends.append((_BACK if len(ends) % 2 == 0 else _AGAIN)[turn % 2])
    index = np.floor(strokes).astype(int)
    low, high = np.array(ends)[index], np.array(ends)[index + 1]
    return low + (high - low) * _min_jerk(strokes - index)


def _min_jerk(u: np.ndarray) -> np.ndarray:
    return u**3 * (10 - 15 * u + 6 * u**2)


def _sway(time_s: np.ndarray, dims: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth tremor of about unit size, (T, dims)."""
    rate, phase = rng.uniform(0.6, 2.3, (2, dims)), rng.uniform(0, 2 * np.pi, (2, dims))
    return 0.5 * np.sin(2 * np.pi * time_s[:, None, None] * rate + phase).sum(1)


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)
