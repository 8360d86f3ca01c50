"""Motion of a sample of labelled clips in plain units, and the clips that no hand would make: wrong units, swapped hands, jumps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jala_ray.hands.camera import project
from jala_ray.types import HAND_NAMES, Clip, Hand

FINGER_JOINTS = 12
"""MANO's joints of the four fingers; the thumb's three come after them."""
MAX_SPEED = 5.0
"""m/s of real time, between two neighbouring frames. A quick reach peaks at 2 to 3."""
MAX_REACH = 1.5
"""m from the camera of the frame to the wrist: an arm's length and a raised tripod."""
MAX_FINGER = 150.0
"""Degrees. No finger joint turns so far from the flat hand."""
MIN_BEND = -10.0
"""Degrees, median of a clip. Fingers close far and bend backwards little: less than this is a mirrored hand."""
MIN_GAP = -0.05
"""m. Before a person's own camera the right wrist is right of the left one; less than this, as the median of a clip, is odd."""
STILL_M = 1e-4
"""m. A wrist that stays within this over a clip is a placeholder."""
QUANTITIES = {
    "x": ("Wrist x", "m, right of the camera"),
    "y": ("Wrist y", "m, below the camera"),
    "z": ("Wrist z", "m, before the camera"),
    "speed": ("Wrist speed", "m/s of real time"),
    "finger": ("Finger rotation", "degrees, every joint"),
    "bend": ("Finger bending", "degrees, positive closes the hand"),
}
"""What is measured -> (name, unit and meaning)."""


@dataclass(frozen=True, eq=False)
class HandMeasures:
    """One labelled hand of a clip, at its F valid frames."""

    values: Mapping[str, np.ndarray]
    """By `QUANTITIES`: x, y, z, bend (F,), speed (pairs of neighbouring valid frames,), finger (F x 15,)."""
    seen: np.ndarray
    """(F, 3) wrist in the camera of its own frame, m."""
    inside: np.ndarray | None
    """(F,) whether the wrist projects into the picture; None without a camera."""

    @property
    def still(self) -> bool:
        return all(np.ptp(self.values[axis]) < STILL_M for axis in "xyz") and len(self.seen) > 1


@dataclass(frozen=True, eq=False)
class ClipMotion:
    row: int
    clip_id: str
    source: str
    hands: Mapping[Hand, HandMeasures]
    gap: float | None
    """m by which the right wrist is to the right of the left one, median over the frames that have both; None without such."""


@dataclass(frozen=True)
class Outlier:
    """A clip whose motion breaks one of the limits."""

    row: int
    clip_id: str
    source: str
    hand: str
    what: str
    value: str
    limit: str
    kind: str
    excess: float
    """How far beyond the limit, in units of it; for sorting."""


def measure(row: int, clip: Clip) -> ClipMotion:
    """Positions, speeds and angles of the labelled hands of one clip."""
    hands = {side: _hand(clip, side) for side in Hand if clip.hands[side].valid.any()}
    both = clip.hands[0].valid & clip.hands[1].valid if len(hands) == len(Hand) else np.zeros(0, bool)
    gap = None
    if both.any():
        left, right = (_seen(clip, clip.hands[side].wrist)[both, 0] for side in Hand)
        gap = float(np.median(right - left))
    return ClipMotion(row, clip.clip_id, clip.source, hands, gap)


def _hand(clip: Clip, side: Hand) -> HandMeasures:
    track = clip.hands[side]
    valid = track.valid
    wrist, theta = track.wrist.astype(np.float64), track.theta[valid].astype(np.float64)
    near = np.flatnonzero(valid[1:] & valid[:-1])
    time = clip.pose_time_s.astype(np.float64)
    speed = np.linalg.norm(wrist[near + 1] - wrist[near], axis=-1) / (time[near + 1] - time[near])
    # In MANO's flat hand the fingers bend about z, with opposite signs on the two sides.
    bend = theta[:, :FINGER_JOINTS, 2].mean(1) * (1 if side is Hand.RIGHT else -1)
    values = {axis: wrist[valid, i] for i, axis in enumerate("xyz")} | {
        "speed": speed,
        "finger": np.degrees(np.linalg.norm(theta, axis=-1)).ravel(),
        "bend": np.degrees(bend),
    }
    seen = _seen(clip, track.wrist)[valid]
    return HandMeasures(values, seen, _inside(clip, seen))


def _seen(clip: Clip, wrist: np.ndarray) -> np.ndarray:
    """(T, 3) positions in the camera of their own frame, m; invalid frames included."""
    points = wrist.astype(np.float64)
    if not len(clip.extrinsics):
        return points
    return np.einsum("tij,tj->ti", clip.extrinsics[:, :, :3], points) + clip.extrinsics[:, :, 3]


def _inside(clip: Clip, seen: np.ndarray) -> np.ndarray | None:
    if clip.camera is None:
        return None
    px = project(clip.camera, seen)
    with np.errstate(invalid="ignore"):  # NaN, behind the camera, compares False
        return np.all((px >= 0) & (px < [clip.camera.width, clip.camera.height]), axis=-1)


def pool(motions: Sequence[ClipMotion], side: Hand, quantity: str) -> np.ndarray:
    """All values of one quantity and hand, of many clips."""
    found = [motion.hands[side].values[quantity] for motion in motions if side in motion.hands]
    return np.concatenate([np.zeros(0), *found])


def inside_share(motions: Sequence[ClipMotion], side: Hand) -> float | None:
    """Share of frames whose wrist projects into the picture; None where no clip has a camera."""
    found = [motion.hands[side].inside for motion in motions if side in motion.hands]
    known = [inside for inside in found if inside is not None]
    return float(np.concatenate(known).mean()) if known else None


def outliers(motions: Sequence[ClipMotion]) -> list[Outlier]:
    """Everything beyond the limits, worst first."""
    found = [outlier for motion in motions for outlier in _clip_outliers(motion)]
    return sorted(found, key=lambda outlier: (-outlier.excess, outlier.clip_id, outlier.kind))


def _clip_outliers(motion: ClipMotion) -> list[Outlier]:
    found: list[Outlier] = []

    def add(hand: str, kind: str, what: str, value: str, limit: str, excess: float) -> None:
        found.append(Outlier(motion.row, motion.clip_id, motion.source, hand, what, value, limit, kind, excess))

    for side, hand in motion.hands.items():
        name = HAND_NAMES[side]
        speed = hand.values["speed"].max(initial=0)
        if speed > MAX_SPEED:
            add(name, "speed", "wrist jumps", f"{speed:.1f} m/s", f"{MAX_SPEED:g} m/s", speed / MAX_SPEED)
        reach = np.linalg.norm(hand.seen, axis=-1).max()
        if reach > MAX_REACH:
            add(name, "reach", "wrist far from the camera", f"{reach:.2f} m", f"{MAX_REACH:g} m", reach / MAX_REACH)
        behind = float((hand.seen[:, 2] <= 0).mean())
        if behind:
            add(name, "behind", "wrist behind the camera", f"{behind:.0%} of frames", "never", 1 + behind)
        finger = hand.values["finger"].max()
        if finger > MAX_FINGER:
            add(name, "finger", "finger joint turned far", f"{finger:.0f}°", f"{MAX_FINGER:g}°", finger / MAX_FINGER)
        bend = float(np.median(hand.values["bend"]))
        if bend < MIN_BEND:
            add(
                name,
                "bend",
                "fingers bent backwards (a mirrored hand?)",
                f"{bend:.0f}°",
                f"{MIN_BEND:g}°",
                bend / MIN_BEND,
            )
        if hand.still:
            add(name, "still", "wrist does not move (a placeholder?)", "0 m", f"{STILL_M * 1000:g} mm", 1.0)
    if motion.gap is not None and motion.gap < MIN_GAP:
        value = f"{-100 * motion.gap:.0f} cm"
        add("both", "sides", "left wrist right of the right one", value, f"{-100 * MIN_GAP:g} cm", motion.gap / MIN_GAP)
    return found
