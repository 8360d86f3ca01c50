"""Long clips cut at shots, labels and 10 s, and parts of clips with everything re-expressed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from jala_ray.data.manifest.rows import SCHEMA, clip_to_row, row_to_clip, rows_to_table
from jala_ray.data.manifest.validation import validate_table
from jala_ray.data.prepare.segments import by_length, by_shots, by_validity, cut_clip, segments
from jala_ray.hands.mano import load_pair
from jala_ray.hands.resample import chunk_features, labelled_chunks, resample_track
from jala_ray.hands.rotations import axis_angle_to_matrix
from jala_ray.types import Clip, Hand, HandState, HandTrack, PacketIndex, UserError
from jala_ray.video.decode import probe

FPS = 30.0
UNTRACKED, ABSENT = HandTrack(HandState.UNTRACKED), HandTrack(HandState.ABSENT)


def world_to_camera(t: np.ndarray) -> np.ndarray:
    """(..., 4, 4): a head that turns and walks, at times t (...,), seconds."""
    t = np.asarray(t, np.float64)
    out = np.zeros((*t.shape, 4, 4))
    angles = np.stack([0.4 * np.sin(t), 0.7 * t, 0.2 * np.cos(2 * t)], -1)
    out[..., :3, :3] = Rotation.from_euler("xyz", angles.reshape(-1, 3)).as_matrix().reshape(*t.shape, 3, 3)
    out[..., :3, 3] = np.stack([0.3 * t, -0.1 * t**2, 0.5 * np.sin(t)], -1)
    out[..., 3, 3] = 1
    return out


def world_hand(side: Hand, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """theta (T, 15, 3), wrist rotation (T, 3, 3), wrist (T, 3) in the world, metres and radians."""
    phase = np.linspace(0, 1, 45).reshape(15, 3)
    theta = 0.5 * np.sin(3 * np.asarray(t)[:, None, None] + 6 * phase)
    rot = Rotation.from_rotvec(np.stack([t, 0.5 * t + side, np.sin(t)], -1)).as_matrix()
    return theta, rot, np.stack([0.2 * np.cos(t), 0.1 * t + 0.3 * side, 0.6 + 0.1 * np.sin(t)], -1)


def moving_clip(seconds: float = 8.0, fps: float = FPS, *, pose_fps: float | None = None, **changes) -> Clip:
    """Two labelled hands and a moving camera; poses in the first camera, by 4 x 4 matrices."""
    time = np.arange(round(seconds * (pose_fps or fps))) / (pose_fps or fps)
    first = world_to_camera(np.array(0.0))
    tracks = []
    for side in Hand:
        theta, rot, wrist = world_hand(side, time)
        rotvec = Rotation.from_matrix(first[:3, :3] @ rot).as_rotvec()
        wrist = wrist @ first[:3, :3].T + first[:3, 3]
        theta, rotvec, wrist = (a.astype(np.float32) for a in (theta, rotvec, wrist))
        tracks.append(HandTrack(HandState.LABELLED, np.ones(len(time), bool), theta, rotvec, wrist))
    clip = Clip(
        clip_id="long",
        source="test",
        domain="wild",
        split="train",
        task_type="generation",
        video_uri="video.mp4",
        start_s=2.0,
        end_s=2.0 + seconds,
        fps=fps,
        time_scale=0.5,
        instructions=("go",),
        description="",
        camera=None,
        pose_time_s=time,
        hands=(tracks[0], tracks[1]),
        extrinsics=(world_to_camera(time) @ np.linalg.inv(first))[:, :3],
    )
    return replace(clip, **changes)


def with_validity(clip: Clip, valid: np.ndarray, side: Hand = Hand.RIGHT) -> Clip:
    """The clip with one labelled hand, valid as said; poses of invalid frames are 0."""
    track = clip.hands[side]
    keep = valid[:, None]
    track = replace(
        track, valid=valid, rot=track.rot * keep, wrist=track.wrist * keep, theta=track.theta * keep[..., None]
    )
    return replace(clip, hands=(ABSENT, track) if side is Hand.RIGHT else (track, ABSENT))


def joints_of(track: HandTrack, side: Hand) -> np.ndarray:
    """(T, 21, 3) of a track, in its own frame, metres."""
    hand = load_pair()[side].double()
    theta, rot = (axis_angle_to_matrix(torch.from_numpy(np.asarray(a, np.float64))) for a in (track.theta, track.rot))
    wrist, beta = torch.from_numpy(np.asarray(track.wrist, np.float64)), torch.from_numpy(track.beta.astype(np.float64))
    return hand.joints(theta, rot, wrist, beta).numpy()


def world_joints(side: Hand, t: np.ndarray) -> np.ndarray:
    theta, rot, wrist = world_hand(side, t)
    hand = load_pair()[side].double()
    theta = axis_angle_to_matrix(torch.from_numpy(theta))
    beta = torch.zeros(10, dtype=torch.float64)
    return hand.joints(theta, torch.from_numpy(rot), torch.from_numpy(wrist), beta).numpy()


def seen_from(camera: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ camera[:3, :3].T + camera[:3, 3]


@pytest.mark.parametrize("start", [2.5, 3 + 1 / 3, 2 + 101 / 30, 2 + 101.4 / 30, 2.0])
def test_joints_are_seen_by_the_new_first_camera(start):
    """Through the world by hand, at every pose frame; a start between frames means the picture then shown."""
    clip = moving_clip()
    part = cut_clip(clip, start, start + 2.0)
    shown = np.floor((start - 2.0) * FPS + 1e-6) / FPS
    camera = world_to_camera(np.array(shown))
    time = start - 2.0 + part.pose_time_s.astype(np.float64)
    assert len(time) in (61, 62, 63) and part.pose_time_s[0] == pytest.approx(shown + 2.0 - start, abs=1e-6)
    for side in Hand:
        expected = seen_from(camera, world_joints(side, time))
        np.testing.assert_allclose(joints_of(part.hands[side], side), expected, atol=1e-5)
    expected = world_to_camera(time) @ np.linalg.inv(camera)
    np.testing.assert_allclose(part.extrinsics, expected[:, :3], atol=1e-5)
    there = int(np.abs(part.pose_time_s + start - 2.0 - shown).argmin())
    np.testing.assert_allclose(part.extrinsics[there], np.eye(3, 4), atol=1e-6)


def test_targets_are_those_of_the_whole_clip_seen_from_there():
    """What the model learns: the 15 frames of every chunk, off the pose grid as well."""
    clip = moving_clip()
    part = cut_clip(clip, 4.0, 7.0)  # 6 chunks, from source second 2 of the clip on.
    at = 2.0 + np.arange(6 * 15) / 30
    camera = world_to_camera(np.array(2.0)) @ np.linalg.inv(world_to_camera(np.array(0.0)))
    for side in Hand:
        _, rot, wrist, valid = resample_track(clip.hands[side], clip.pose_time_s, at)
        _, new_rot, new_wrist, new_valid = resample_track(part.hands[side], part.pose_time_s, at - 2.0)
        assert valid.all() and new_valid.all()
        np.testing.assert_allclose(new_wrist, seen_from(camera, wrist), atol=1e-5)
        turned = camera[:3, :3] @ Rotation.from_rotvec(rot).as_matrix()
        np.testing.assert_allclose(Rotation.from_rotvec(new_rot).as_matrix(), turned, atol=1e-5)
    features, labelled = chunk_features(part)
    assert labelled.shape == (2, 6) and labelled.all() and np.isfinite(features).all()


def test_a_part_of_a_part_is_a_part():
    clip = moving_clip()
    once, twice = cut_clip(clip, 4.0, 6.0), cut_clip(cut_clip(clip, 3.1, 8.0), 4.0, 6.0)
    np.testing.assert_allclose(once.pose_time_s, twice.pose_time_s, atol=1e-6)
    np.testing.assert_allclose(once.extrinsics, twice.extrinsics, atol=1e-5)
    for one, other in zip(once.hands, twice.hands, strict=True):
        np.testing.assert_allclose(one.wrist, other.wrist, atol=1e-5)
        np.testing.assert_array_equal(one.theta, other.theta)


def test_sparse_poses_interpolate_the_camera():
    """Poses at 10 Hz, pictures at 30: the camera of a picture between two poses is between theirs."""
    clip = moving_clip(pose_fps=10.0)
    part = cut_clip(clip, 4.05, 6.05)
    camera = world_to_camera(np.array(2.05))
    expected = (world_to_camera(2.05 + part.pose_time_s.astype(np.float64)) @ np.linalg.inv(camera))[:, :3]
    np.testing.assert_allclose(part.extrinsics, expected, atol=2e-3)
    late = replace(clip, pose_time_s=clip.pose_time_s + 1.0)  # The first pose is a second into the clip.
    assert np.isfinite(cut_clip(late, 2.5, 4.5).extrinsics).all()
    first = cut_clip(late, 2.0, 4.0)
    np.testing.assert_allclose(first.extrinsics, late.extrinsics[: len(first.extrinsics)], atol=1e-6)


def test_without_extrinsics_the_camera_is_still():
    clip = replace(moving_clip(), extrinsics=np.zeros((0, 3, 4), np.float32))
    part = cut_clip(clip, 4.0, 6.0)
    assert part.extrinsics.shape == (0, 3, 4) and len(part.pose_time_s) == 61
    for one, other in zip(part.hands, clip.hands, strict=True):
        for name in ("theta", "rot", "wrist", "valid"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name)[60:121])


def test_rows_of_parts_are_valid_and_named_by_what_they_are():
    one = np.zeros(1, np.int64)
    index = PacketIndex("h264", b"", 8, 8, (1, 30), 1.0, 0, (2, 0), 9, one, one, one, one == 0, one)
    clip = replace(moving_clip(), packets=index)
    part, same, other = (cut_clip(clip, *span) for span in ((4.0, 6.0), (4.0, 6.0), (4.0, 6.5)))
    assert part.packets is None, "they were for other boundaries"
    assert part.clip_id == same.clip_id != other.clip_id and len(part.clip_id) == 16
    assert (part.start_s, part.end_s, part.n_chunks, part.video_uri) == (4.0, 6.0, 4, "video.mp4")
    back = row_to_clip(clip_to_row(part))
    np.testing.assert_array_equal(back.hands[1].wrist, part.hands[1].wrist)
    rows = [clip_to_row(cut_clip(clip, start, end)) for start, end in ((4.01, 6.02), (2.0, 3.99), (7.77, 10.0))]
    assert validate_table(rows_to_table(rows, SCHEMA)) == [], "pose frames just outside are within the rules"
    assert part.pose_time_s.dtype == part.extrinsics.dtype == part.hands[0].rot.dtype == np.float32
    for start, end in ((1.9, 4.0), (4.0, 10.1), (5.0, 5.0), (6.0, 5.0), (float("nan"), 5.0)):
        with pytest.raises(UserError, match=r"2 to 10 s"):
            cut_clip(clip, start, end)


def test_invalid_frames_stay_empty_and_labels_follow_the_chunks():
    valid = np.zeros(240, bool)
    valid[60:130] = True
    clip = with_validity(moving_clip(), valid)
    part = cut_clip(clip, 3.5, 6.0)
    assert part.hands[0].state is HandState.ABSENT and part.task_type == "generation"
    track = part.hands[1]
    assert labelled_chunks(part)[1].tolist() == [False, True, True, True, True]
    assert not track.rot[~track.valid].any() and not track.wrist[~track.valid].any() and track.wrist[track.valid].any()
    bare = cut_clip(clip, 6.0, 9.0)  # Ten valid frames are left, no chunk.
    assert bare.hands[1].state is HandState.UNTRACKED and bare.task_type == "pure_video"
    assert len(bare.pose_time_s) == len(bare.extrinsics) == len(bare.hands[1].valid) == 0
    assert row_to_clip(clip_to_row(bare)).n_chunks == 6
    wild = replace(clip, hands=(UNTRACKED, ABSENT), task_type="pure_video")
    assert cut_clip(wild, 4.0, 5.0).task_type == "pure_video"
    long = replace(moving_clip(), task_type="continuation")
    assert cut_clip(long, 4.0, 5.0).task_type == "continuation" and cut_clip(long, 4.0, 4.5).task_type == "generation"


def test_shots_part_a_span():
    assert by_shots((1.0, 5.0), []) == [(1.0, 5.0)]
    assert by_shots((1.0, 5.0), [3.0, 0.5, 1.0, 5.03, 7.0]) == [(1.0, 3.0), (3.0, 5.0)]
    assert by_shots((1.0, 5.0), [3.0, 5.0]) == [(1.0, 3.0), (3.0, 5.0)], "its last boundary shows the frame before"
    assert by_shots((1.0, 5.0), [3.04, 3.0, 3.0]) == [(1.0, 3.0), (3.0, 3.04), (3.04, 5.0)]


def test_a_cut_on_a_chunk_boundary_costs_no_chunk():
    """The chunk before it ends with the last frame of its own shot."""
    clip = replace(moving_clip(), hands=(UNTRACKED, UNTRACKED), pose_time_s=np.zeros(0))
    assert segments(clip, [4.0, 6.5]) == [(2.0, 4.0), (4.0, 6.5), (6.5, 10.0)]
    assert segments(clip, [4.0 + 1 / 30]) == [(2.0, 4.0), (4.0 + 1 / 30, 9.0 + 1 / 30), (9.0 + 1 / 30, 9.5 + 1 / 30)]


def test_lengths():
    assert by_length((1.0, 26.3), 1.0) == [(1.0, 11.0), (11.0, 21.0), (21.0, 26.0)]
    assert by_length((1.0, 13.9), 0.5) == [(1.0, 6.0), (6.0, 11.0), (11.0, 13.5)]
    assert by_length((1.0, 11.4), 1.0) == [(1.0, 11.0)]
    assert by_length((1.0, 1.9), 1.0) == []


def test_labels_begin_a_span():
    """Chunks of 15 frames, valid from frame 40 to 99: four chunks only if they are counted from frame 40."""
    valid = np.zeros(240, bool)
    valid[40:100] = True
    clip = with_validity(moving_clip(), valid)
    assert labelled_chunks(clip).sum() == 3, "on the clip's own grid"
    first, last = 2 + 40 / 30, 2 + 100 / 30
    spans = by_validity(clip)
    assert spans == [
        (2.0, pytest.approx(first)),
        (pytest.approx(first), pytest.approx(last)),
        (pytest.approx(last), 10.0),
    ]
    parts = [cut_clip(clip, *span) for span in spans]
    assert [labelled_chunks(part).sum() for part in parts] == [0, 4, 0]
    assert [part.task_type for part in parts] == ["pure_video", "generation", "pure_video"]


def test_dropouts_up_to_a_length_are_tolerated():
    valid = np.ones(240, bool)
    valid[100:102] = False  # 0.1 s from frame 99 to frame 102.
    clip = with_validity(moving_clip(), valid)
    assert by_validity(clip) == [(2.0, 10.0)]
    assert by_validity(clip, max_gap_s=0.05) == [
        (2.0, pytest.approx(5.0)),  # Six chunks; what is left of the run and the dropout hold none.
        (pytest.approx(2 + 102 / 30), pytest.approx(2 + 237 / 30)),
    ]
    flickering = with_validity(moving_clip(), np.arange(240) % 12 < 6)
    assert by_validity(flickering) == [(2.0, 10.0)], "no run holds a chunk: one unlabelled span, nothing is lost"


def test_either_hand_counts():
    clip, valid = moving_clip(), np.zeros((2, 240), bool)
    valid[0, 30:90], valid[1, 80:150] = True, True
    tracks = [with_validity(clip, valid[side], side).hands[side] for side in Hand]
    both = replace(clip, hands=(tracks[0], tracks[1]))
    assert by_validity(both) == [(2.0, 3.0), (pytest.approx(3.0), pytest.approx(7.0)), (pytest.approx(7.0), 10.0)]
    untracked = replace(both, hands=(UNTRACKED, tracks[1]))
    assert by_validity(untracked)[1] == (pytest.approx(2 + 80 / 30), pytest.approx(2 + 140 / 30))


@settings(max_examples=80)
@given(st.data())
def test_any_clip_gives_whole_chunks_and_as_many_labels_as_there_are(data):
    """One hand of any validity at 30 fps, any cuts: spans in order, at most 10 s, none across a cut."""
    lengths = data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=10), label="runs")
    scale = data.draw(st.sampled_from([0.5, 1.0]), label="time scale")
    cuts = data.draw(st.lists(st.integers(0, 400), max_size=3), label="cuts")
    valid = np.concatenate([np.full(n, i % 2 == 0) for i, n in enumerate(lengths)])
    clip = with_validity(replace(moving_clip(len(valid) / FPS), time_scale=scale), valid)
    cuts_s = [2.0 + frame / FPS for frame in cuts]
    spans = segments(clip, cuts_s, max_gap_s=1 / FPS)
    assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(spans))
    labels = 0
    for start, end in spans:
        chunks = (end - start) / scale
        assert chunks == pytest.approx(round(chunks)) and 1 <= round(chunks) <= 10
        assert start >= 2.0 and end <= clip.end_s + 1e-6 and not any(start < cut < end - 1e-4 for cut in cuts_s)
        labels += int(labelled_chunks(cut_clip(clip, start, end)).sum())
    borders = (np.flatnonzero(np.diff(valid)) + 1).tolist()
    edges = sorted({0, *borders, *(cut for cut in cuts if cut < len(valid)), len(valid)})
    expected = 0
    for first, last in pairwise(edges):
        if valid[first]:
            expected += int((last - first) / FPS / scale + 1e-6)
    # At time scale 1 only every second frame is a model frame: chunks may be whole where a run is not.
    assert labels == expected if scale == 0.5 else labels >= expected


def test_real_episode(shared_data):
    """VITRA's: 25 frames of Ego4D with a moving head; the second half seen from its own first frame."""
    from jala_ray.data.adapters.vitra import Vitra, read_episode

    folder = shared_data / "vitra_ego4d"
    (clip,) = (clip for clip in Vitra(str(folder)).clips() if isinstance(clip, Clip))
    episode = read_episode(str(next(folder.glob("*.npy"))))
    assert segments(clip) == [(clip.start_s, clip.start_s + 0.5)]
    part = cut_clip(clip, clip.start_s + 8 / clip.fps, clip.end_s)
    assert probe(str(part.video_uri)).fps == clip.fps and part.n_chunks == 1 and labelled_chunks(part)[1].all()
    camera = np.asarray(episode["extrinsics"], float)
    expected = camera[8] @ np.linalg.inv(camera[0])
    wrist = clip.hands[1].wrist[8:] @ expected[:3, :3].T + expected[:3, 3]
    np.testing.assert_allclose(part.hands[1].wrist, wrist, atol=1e-5)
    np.testing.assert_allclose(part.hands[1].wrist[0], np.asarray(episode["right"]["joints_camspace"])[8, 0], atol=1e-4)
