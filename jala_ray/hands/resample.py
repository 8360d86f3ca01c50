"""Poses looked up by time: source frames -> any source times -> the 15 model frames of every chunk (method.md
1).

Wild video is slowed: one second of model time covers `clip.time_scale` seconds of source. Nothing here knows
a frame index.
"""

from __future__ import annotations

import numpy as np
import torch

from jala_ray.hands.features import pose_to_features
from jala_ray.hands.rotations import axis_angle_to_matrix, matrix_to_axis_angle, slerp
from jala_ray.hands.validity import MAX_GAP_S, SNAP_S, check_track, labelled_chunks, model_times, valid_at
from jala_ray.types import CHUNK_FRAMES, FEATURE_DIM, Clip, Hand, HandState, HandTrack

__all__ = ["MAX_GAP_S", "SNAP_S", "chunk_features", "labelled_chunks", "model_times", "resample_track"]


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
    check_track(track, time)
    valid, left, right, fraction = valid_at(np.asarray(track.valid, bool), time, at, max_gap_s)
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
