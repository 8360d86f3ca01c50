"""Poses looked up by time: source frames -> any source times -> the 15 model frames of every chunk (METHOD
1).

Wild video is slowed: one second of model time covers `clip.time_scale` seconds of source. Nothing here knows
a frame index.
"""

from __future__ import annotations

import numpy as np
import torch

from jala_ray.hands.features import pose_to_features
from jala_ray.hands.rotations import axis_angle_to_matrix, matrix_to_axis_angle, slerp
from jala_ray.types import CHUNK_FRAMES, FEATURE_DIM, MODEL_FPS, Clip, Hand, HandState, HandTrack, UserError

MAX_GAP_S = 0.1
"""Longest stretch of source time that is bridged by interpolation, seconds (a 10 fps source; 3 frames at 30
fps).
"""
SNAP_S = 1e-5
"""Sample and frame times nearer than this are the same instant: then no second neighbour is needed."""


def resample_track(
    track: HandTrack, time_s: np.ndarray, at_s: np.ndarray, *, max_gap_s: float = MAX_GAP_S
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pose of one hand at times `at_s` (M,) from frames at `time_s` (T,), ascending; s, same origin.

    Rotations by slerp, positions linearly. Returns theta (M, 15, 3), rot (M, 3), wrist (M, 3), float32, zero
    where not valid, and valid (M,): a sample is valid iff both neighbouring frames are and they are at most
    `max_gap_s` apart (one frame is enough for a sample on it). Outside the frames the nearest one is held for
    at most one source frame (the median spacing); later samples are not valid. Raises UserError for lengths
    that differ, unordered times, or NaN in a valid frame.
    """
    time, at = np.asarray(time_s, np.float64), np.asarray(at_s, np.float64)
    _check_track(track, time)
    valid, left, right, fraction = _valid_at(np.asarray(track.valid, bool), time, at, max_gap_s)
    if not valid.any():
        zeros = np.zeros((len(at), 17, 3), np.float32)
        return zeros[:, 1:16], zeros[:, 0], zeros[:, 16], valid
    lo, hi, part = left[valid], right[valid], torch.from_numpy(fraction[valid])
    rotations = torch.from_numpy(np.concatenate([track.rot[:, None], track.theta], 1).astype(np.float64))
    start, end = (axis_angle_to_matrix(rotations[torch.from_numpy(i)]) for i in (lo, hi))
    between = matrix_to_axis_angle(slerp(start, end, part[:, None].expand(-1, 16))).numpy()
    wrist = np.asarray(track.wrist, np.float64)
    out = np.zeros((len(at), 17, 3), np.float32)
    out[valid, :16] = between
    out[valid, 16] = (1 - fraction[valid, None]) * wrist[lo] + fraction[valid, None] * wrist[hi]
    return out[:, 1:16], out[:, 0], out[:, 16], valid


def chunk_features(clip: Clip, *, max_gap_s: float = MAX_GAP_S) -> tuple[np.ndarray, np.ndarray]:
    """Features (2, N, 15, 99) float32 of every hand-chunk and labelled (2, N) bool; hands left, right.

    Frame j of chunk i is at model second i + j / 15, that is `clip.time_scale` times as many source seconds.
    A chunk is labelled iff the hand is LABELLED and all its 15 frames are valid; features are zero where it
    is not.
    """
    n = clip.n_chunks
    features = np.zeros((len(Hand), n, CHUNK_FRAMES, FEATURE_DIM), np.float32)
    labelled = np.zeros((len(Hand), n), bool)
    at = model_times(n) * clip.time_scale
    for side in Hand:
        track = clip.hands[side]
        if track.state is not HandState.LABELLED or n == 0:
            continue
        theta, rot, wrist, valid = resample_track(track, clip.pose_time_s, at, max_gap_s=max_gap_s)
        matrices = axis_angle_to_matrix(torch.from_numpy(np.concatenate([rot[:, None], theta], 1)))
        flat = pose_to_features(matrices[:, 1:], matrices[:, 0], torch.from_numpy(wrist), side).numpy()
        labelled[side] = valid.reshape(n, CHUNK_FRAMES).all(1)
        features[side] = np.where(labelled[side, :, None, None], flat.reshape(n, CHUNK_FRAMES, FEATURE_DIM), 0.0)
    return features, labelled


def labelled_chunks(clip: Clip, *, max_gap_s: float = MAX_GAP_S) -> np.ndarray:
    """labelled (2, N) bool as `chunk_features` gives it, from the frames' validity alone."""
    n = clip.n_chunks
    labelled = np.zeros((len(Hand), n), bool)
    at = model_times(n) * clip.time_scale
    time = np.asarray(clip.pose_time_s, np.float64)
    for side in Hand:
        track = clip.hands[side]
        if track.state is HandState.LABELLED and n:
            _check_track(track, time)
            valid = _valid_at(np.asarray(track.valid, bool), time, at, max_gap_s)[0]
            labelled[side] = valid.reshape(n, CHUNK_FRAMES).all(1)
    return labelled


def model_times(chunks: int) -> np.ndarray:
    """(chunks * 15,) model seconds of the frames of all chunks."""
    at = np.arange(chunks)[:, None] * (CHUNK_FRAMES / MODEL_FPS) + np.arange(CHUNK_FRAMES) / MODEL_FPS
    return at.ravel()


def _valid_at(
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


def _check_track(track: HandTrack, time: np.ndarray) -> None:
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
