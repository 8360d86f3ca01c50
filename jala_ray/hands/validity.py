"""Which model frames of a clip have a pose: a track's frames looked up by time, without the poses. Knows no torch."""

from __future__ import annotations

import numpy as np

from jala_ray.types import CHUNK_FRAMES, MODEL_FPS, Clip, Hand, HandState, HandTrack, UserError

MAX_GAP_S = 0.1
"""Longest stretch of source time that is bridged by interpolation, seconds (a 10 fps source; 3 frames at 30
fps).
"""
SNAP_S = 1e-5
"""Sample and frame times nearer than this are the same instant: then no second neighbour is needed."""


def labelled_chunks(clip: Clip, *, max_gap_s: float = MAX_GAP_S) -> np.ndarray:
    """labelled (2, N) bool as `chunk_features` gives it, from the frames' validity alone."""
    n = clip.n_chunks
    labelled = np.zeros((len(Hand), n), bool)
    at = model_times(n) * clip.time_scale
    time = np.asarray(clip.pose_time_s, np.float64)
    for side in Hand:
        track = clip.hands[side]
        if track.state is HandState.LABELLED and n:
            check_track(track, time)
            valid = valid_at(np.asarray(track.valid, bool), time, at, max_gap_s)[0]
            labelled[side] = valid.reshape(n, CHUNK_FRAMES).all(1)
    return labelled


def model_times(chunks: int) -> np.ndarray:
    """(chunks * 15,) model seconds of the frames of all chunks."""
    at = np.arange(chunks)[:, None] * (CHUNK_FRAMES / MODEL_FPS) + np.arange(CHUNK_FRAMES) / MODEL_FPS
    return at.ravel()


def valid_at(
    usable: np.ndarray, time: np.ndarray, at: np.ndarray, max_gap_s: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """valid (M,), and the frames before and after each sample with the second's share."""
    if not usable.any() or not len(at):
        nothing = np.zeros(len(at), np.int64)
        return np.zeros(len(at), bool), nothing, nothing, np.zeros(len(at))
    left, right, fraction, reachable = _neighbours(time, at, max_gap_s)
    return reachable & usable[left] & usable[right], left, right, fraction


def _neighbours(
    time: np.ndarray, at: np.ndarray, max_gap_s: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Frames before and after each sample (M,), the second's share, and whether they may be bridged."""
    last = len(time) - 1
    right = np.searchsorted(time, at).clip(0, last)
    left = (right - 1).clip(0)
    left = np.where(at >= time[last], last, left)
    for other in (left, right):
        on_frame = np.abs(time[other] - at) <= SNAP_S
        left, right = np.where(on_frame, other, left), np.where(on_frame, other, right)
    outside = (at < time[0]) | (at > time[last])
    left, right = np.where(at < time[0], 0, left), np.where(at < time[0], 0, right)
    gap = time[right] - time[left]
    fraction = np.where(gap > 0, (at - time[left]) / np.where(gap > 0, gap, 1.0), 0.0)
    frame_s = float(np.median(np.diff(time))) if last > 0 else 0.0
    beyond = np.where(outside, np.abs(at - time[left]), 0.0)
    return left, right, fraction, (gap <= max_gap_s + SNAP_S) & (beyond <= frame_s + SNAP_S)


def check_track(track: HandTrack, time: np.ndarray) -> None:
    t = len(time)
    shapes = {"valid": (t,), "theta": (t, 15, 3), "rot": (t, 3), "wrist": (t, 3)}
    for name, shape in shapes.items():
        if getattr(track, name).shape != shape:
            remedy = "Give one pose for each pose time."
            raise UserError(f"track.{name}", getattr(track, name).shape, f"shape {shape}", remedy)
    if not np.isfinite(time).all() or (np.diff(time) <= 0).any():
        raise UserError(
            "time_s",
            "not ascending",
            "finite, strictly ascending seconds",
            "Sort and deduplicate the frames.",
        )
    for name in ("theta", "rot", "wrist"):
        pose = getattr(track, name)
        finite = np.isfinite(pose).all(axis=tuple(range(1, pose.ndim)))
        bad = np.flatnonzero(np.asarray(track.valid, bool) & ~finite)
        if len(bad):
            remedy = "Mark the frame invalid or repair its pose."
            raise UserError(f"track.{name} of frame {bad[0]}", "NaN or infinity", "finite numbers", remedy)
