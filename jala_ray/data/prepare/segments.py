"""Cut long clips into training clips: at shot cuts, where labels begin, into at most 10 s (method.md 1, 11).

Spans are (start, end) in source seconds on the presentation timeline of the video, as `Clip.start_s` is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from jala_ray.data.adapters.base import pieces
from jala_ray.data.manifest.rows import clip_id
from jala_ray.data.manifest.validation import DURATION_SLACK
from jala_ray.hands.camera import compose_rigid, invert_rigid, pose_to_first_camera
from jala_ray.hands.validity import MAX_GAP_S, SNAP_S, labelled_chunks
from jala_ray.types import CHUNK_SECONDS, MODEL_FPS, Clip, Hand, HandState, HandTrack, TaskType, UserError

Span = tuple[float, float]
NEXT_FRAME = 0.99
"""Frames after its time at which a picture still counts as the one shown: frame rates are nominal."""


def segments(clip: Clip, cuts: Sequence[float] = (), *, max_gap_s: float = MAX_GAP_S) -> list[Span]:
    """The spans of a long clip's training clips, ascending: whole chunks, at least one, at most 10 s model time.

    Within each shot (`cuts` as of `video.shots.shot_cuts`), cut where labels begin and end, then by length. No
    boundary frame of a span is of another shot. `cut_clip` makes the clips.
    """
    found: list[Span] = []
    for shot in by_shots((clip.start_s, clip.end_s), cuts):
        for stretch in by_validity(clip, shot, max_gap_s=max_gap_s):
            found += by_length(stretch, clip.time_scale)
    return found


def by_shots(span: Span, cuts: Sequence[float]) -> list[Span]:
    """The parts of a span between the cuts, each cut being the time of a shot's first frame.

    A part may end on a cut: the last boundary of a clip that ends where the next shot begins shows the frame before
    (method.md 1).
    """
    start, end = span
    inside = sorted({float(cut) for cut in cuts if start < cut < end})
    return list(pairwise([start, *inside, end]))


def by_validity(clip: Clip, span: Span | None = None, *, max_gap_s: float = MAX_GAP_S) -> list[Span]:
    """Cut a span of a clip (all of it by default) where labels begin and where they end.

    A chunk is labelled iff all its 15 frames are valid, so chunks are counted from the first valid frame: a
    labelled span begins there and takes as many whole chunks as its run of valid frames holds. What lies
    between labelled spans, the rest of a run included, becomes a span of its own if it holds a chunk; only
    stretches shorter than a chunk are lost.

    A frame is valid where either labelled hand is. Valid frames at most `max_gap_s` apart belong to one run:
    a short dropout costs its chunk the label, cutting there would cost the clip its length.
    """
    start, end = span or (clip.start_s, clip.end_s)
    chunk_s = CHUNK_SECONDS * clip.time_scale
    enough_s = chunk_s * (1 - 1e-6)
    found: list[Span] = []
    free = start
    for first, last in _runs(_valid_times(clip, start, end), max_gap_s):
        first = max(first, free)
        # The last frame of a chunk is sampled one model frame before the chunk ends.
        covered_s = min(last + clip.time_scale / MODEL_FPS + SNAP_S, end + enough_s * 1e-6) - first
        count = math.floor(covered_s / chunk_s)
        if count < 1:
            continue
        if first - free >= enough_s:
            found.append((free, first))
        free = first + count * chunk_s
        found.append((first, free))
    if end - free >= enough_s:
        found.append((free, end))
    return found


def by_length(span: Span, time_scale: float) -> list[Span]:
    """Cut a span into whole chunks, at most 10 s of model time together; what is shorter than a chunk is dropped."""
    chunk_s = CHUNK_SECONDS * time_scale
    counted = [(first, math.floor((last - first) / chunk_s + 1e-6)) for first, last in pieces(*span, time_scale)]
    return [(first, first + count * chunk_s) for first, count in counted if count]


def _valid_times(clip: Clip, start: float, end: float) -> np.ndarray:
    """(M,) times in the file of pose frames in [start, end) at which a labelled hand is valid, ascending."""
    time = clip.start_s + np.asarray(clip.pose_time_s, np.float64)
    valid = np.zeros(len(time), bool)
    for track in clip.hands:
        if track.state is HandState.LABELLED:
            valid |= np.asarray(track.valid, bool)
    return time[valid & (time >= start - SNAP_S) & (time < end - SNAP_S)]


def _runs(times: np.ndarray, max_gap_s: float) -> Iterator[Span]:
    """First and last of each run of times (M,) that are at most `max_gap_s` apart."""
    if len(times):
        for run in np.split(times, np.flatnonzero(np.diff(times) > max_gap_s + SNAP_S) + 1):
            yield float(run[0]), float(run[-1])


def cut_clip(clip: Clip, start_s: float, end_s: float) -> Clip:
    """The part of a clip from `start_s` to `end_s`, source seconds as `clip.start_s`, as a clip of its own.

    Poses are looked up by time as before; they are expressed in the camera of the new first frame, and the
    extrinsics too (method.md 1); without extrinsics the camera is still. A pose frame on either side is kept,
    if near, so that the ends are interpolated as they were. A labelled hand without a labelled chunk in the
    part becomes untracked, and without any labelled hand the part is pure video. The id follows from the
    clip's id and the times. Raises UserError unless the part lies in the clip.

    `pose_time_s` of clips longer than some minutes should be float64: float32 then rounds by more than `SNAP_S`.
    """
    if not clip.start_s - SNAP_S <= start_s < end_s <= clip.end_s + SNAP_S:
        raise UserError("part", (start_s, end_s), f"times within {clip.start_s:g} to {clip.end_s:g} s, start first")
    begin, length = start_s - clip.start_s, end_s - start_s
    time = np.asarray(clip.pose_time_s, np.float64) - begin
    keep = _near(time, length, DURATION_SLACK / clip.fps)
    extrinsics, camera = clip.extrinsics, None
    if len(extrinsics):
        camera = _camera_at(clip, begin)
        extrinsics = compose_rigid(extrinsics[keep], invert_rigid(camera)[None]).astype(np.float32)
    left, right = (_cut_track(track, keep, camera) for track in clip.hands)
    part = replace(
        clip,
        clip_id=clip_id(clip.source, clip.clip_id, start_s, end_s),
        start_s=start_s,
        end_s=end_s,
        pose_time_s=time[keep].astype(np.float32),
        hands=(left, right),
        extrinsics=extrinsics,
        packets=None,
    )
    return _downgraded(part)


def _downgraded(part: Clip) -> Clip:
    """The part with only the labels, and the task, that its chunks still have."""
    labelled = labelled_chunks(part)
    was_labelled = [track.state is HandState.LABELLED for track in part.hands]
    left, right = (
        HandTrack(HandState.UNTRACKED) if was_labelled[side] and not labelled[side].any() else part.hands[side]
        for side in Hand
    )
    part = replace(part, hands=(left, right))
    if part.task_type == "continuation" and part.n_chunks < 2:
        part = replace(part, task_type="generation")
    if labelled.any() or not any(was_labelled):
        return part
    task: TaskType = "pure_video" if part.instructions else part.task_type
    nothing = {"pose_time_s": np.zeros(0, np.float32), "extrinsics": np.zeros((0, 3, 4), np.float32)}
    return replace(part, task_type=task, **nothing)


def _near(time: np.ndarray, length: float, slack_s: float) -> slice:
    """Pose frames in [0, length], and one more on either side where it is at most `slack_s` away."""
    first = max(0, int(np.searchsorted(time, SNAP_S, "right")) - 1)
    last = int(np.searchsorted(time, length - SNAP_S)) + 1
    first += int(first < len(time) and time[first] < -slack_s)
    last = min(last, len(time))
    last -= int(last > first and time[last - 1] > length + slack_s)
    return slice(first, last)


def _camera_at(clip: Clip, at: float) -> np.ndarray:
    """(3, 4) clip's first camera -> camera of the picture shown `at` seconds after the clip's beginning.

    That is the camera of the pose frame made from this picture; where poses are sparser than pictures, or
    begin later, it is interpolated.
    """
    time, to_camera = np.asarray(clip.pose_time_s, np.float64), np.asarray(clip.extrinsics, np.float64)
    shown = int(np.searchsorted(time, at + SNAP_S, "right")) - 1
    if shown >= 0 and (at - time[shown]) * clip.fps < NEXT_FRAME:
        return to_camera[shown]
    if time[0] > 0:  # By definition of the first camera.
        time, to_camera = np.insert(time, 0, 0.0), np.concatenate([np.eye(3, 4)[None], to_camera])
    right = int(np.searchsorted(time, at).clip(1, len(time) - 1)) if len(time) > 1 else 0
    left = max(0, right - 1)
    share = np.clip((at - time[left]) / (time[right] - time[left]), 0, 1) if right else 0.0
    import torch

    from jala_ray.hands.rotations import slerp

    pose = torch.from_numpy(invert_rigid(to_camera[[left, right]]))  # The camera itself: it is what moves steadily.
    rotation = slerp(pose[0, :, :3], pose[1, :, :3], float(share))
    position = (1 - share) * pose[0, :, 3] + share * pose[1, :, 3]
    return invert_rigid(torch.cat([rotation, position[:, None]], 1).numpy())


def _cut_track(track: HandTrack, keep: slice, first_to_new: np.ndarray | None) -> HandTrack:
    """A labelled hand's frames `keep`, expressed in the new first camera if there is one; frames without pose stay 0."""
    if track.state is not HandState.LABELLED:
        return track
    rot, wrist, valid = track.rot[keep], track.wrist[keep], np.asarray(track.valid[keep], bool)
    if first_to_new is not None and len(rot):
        import torch

        from jala_ray.hands.rotations import axis_angle_to_matrix, matrix_to_axis_angle

        turned = axis_angle_to_matrix(torch.from_numpy(np.asarray(rot, np.float64))).numpy()
        turned, moved = pose_to_first_camera(invert_rigid(first_to_new)[None], turned, np.asarray(wrist, np.float64))
        angles = matrix_to_axis_angle(torch.from_numpy(np.ascontiguousarray(turned))).numpy()
        rot = np.where(valid[:, None], angles, 0).astype(np.float32)
        wrist = np.where(valid[:, None], moved, 0).astype(np.float32)
    return replace(track, valid=valid, theta=track.theta[keep], rot=rot, wrist=wrist)
