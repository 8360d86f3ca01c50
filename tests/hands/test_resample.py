"""Looking poses up by time: interpolation, validity, gaps, the last frame, the slowed wild time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation, Slerp

from jala_ray.hands.features import features_to_pose
from jala_ray.hands.resample import MAX_GAP_S, chunk_features, resample_track
from jala_ray.hands.rotations import matrix_to_axis_angle
from jala_ray.types import WILD_TIME_SCALE, Camera, Clip, Hand, HandState, HandTrack, UserError

RATE = np.array([0.3, -0.2, 0.5])
"""Turn (rad/s) and movement (m/s) of the test hand: linear in time, so interpolation must be exact."""


def steady_track(time_s: np.ndarray, valid: np.ndarray | None = None) -> HandTrack:
    t = np.asarray(time_s)[:, None]
    fingers = np.repeat((t * RATE[::-1])[:, None], 15, 1).astype(np.float32)
    valid = np.ones(len(t), bool) if valid is None else valid
    return HandTrack(HandState.LABELLED, valid, fingers, (t * RATE).astype(np.float32), (t * RATE).astype(np.float32))


def steady_clip(fps: float, seconds: float, time_scale: float, **changes: object) -> Clip:
    time_s = np.arange(round(seconds * fps)) / fps
    clip = Clip(
        clip_id="c",
        source="test",
        domain="wild",
        split="train",
        task_type="generation",
        video_uri=None,
        start_s=3.0,
        end_s=3.0 + seconds,
        fps=fps,
        time_scale=time_scale,
        instructions=("go",),
        description="",
        camera=Camera(1, 1, 0, 0, 2, 2),
        pose_time_s=time_s,
        hands=(HandTrack(HandState.ABSENT), steady_track(time_s)),
    )
    return replace(clip, **changes)


def test_interpolates_rotation_and_position_at_any_time() -> None:
    time = np.sort(np.random.default_rng(0).uniform(0, 1, 60))
    at = np.linspace(time[0], time[-1], 41)
    theta, rot, wrist, valid = resample_track(steady_track(time), time, at)
    assert valid.all() and theta.shape == (41, 15, 3)
    np.testing.assert_allclose(rot, at[:, None] * RATE, atol=1e-5)
    np.testing.assert_allclose(wrist, at[:, None] * RATE, atol=1e-6)
    np.testing.assert_allclose(theta[:, 7], at[:, None] * RATE[::-1], atol=1e-5)


def test_rotations_take_the_short_way_like_scipy_slerp() -> None:
    """Axis-angle vectors on both sides of the seam at pi are near as rotations, far as vectors."""
    ends = np.array([[0, 0, 3.1], [0, 0, -3.1]])
    time = np.array([0.0, 0.1])
    source = HandTrack(
        HandState.LABELLED,
        np.ones(2, bool),
        np.zeros((2, 15, 3), np.float32),
        ends.astype(np.float32),
        np.zeros((2, 3), np.float32),
    )
    at = np.linspace(0, 0.1, 7)
    _, rot, _, valid = resample_track(source, time, at)
    expected = Slerp(time, Rotation.from_rotvec(ends))(at)
    assert valid.all()
    assert (Rotation.from_rotvec(rot).inv() * expected).magnitude().max() < 1e-5


def test_a_sample_needs_both_neighbours_unless_it_is_on_a_frame() -> None:
    time = np.arange(6) / 30
    usable = np.array([True, True, False, True, True, True])
    source = steady_track(time, usable)
    source.wrist[2] = np.nan
    at = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]) / 30
    _, _, wrist, valid = resample_track(source, time, at)
    assert valid.tolist() == [True, True, False, False, False, True, True]
    assert (wrist[~valid] == 0).all()


def test_long_gaps_are_not_bridged() -> None:
    time = np.array([0.0, 0.05, 0.05 + MAX_GAP_S, 0.5, 0.55])
    at = np.array([0.03, 0.1, 0.2, 0.49, 0.52])
    source = steady_track(time)
    assert resample_track(source, time, at)[3].tolist() == [True, True, False, False, True]
    assert resample_track(source, time, at, max_gap_s=1.0)[3].all()


def test_the_nearest_frame_is_held_for_one_source_frame_and_no_longer() -> None:
    time = 0.2 + np.arange(10) / 30
    at = np.array([0.2 - 1.1 / 30, 0.2 - 0.9 / 30, time[-1] + 1 / 30, time[-1] + 1.1 / 30])
    _, _, wrist, valid = resample_track(steady_track(time), time, at)
    assert valid.tolist() == [False, True, True, False]
    np.testing.assert_allclose(wrist[1], time[0] * RATE, atol=1e-6)
    np.testing.assert_allclose(wrist[2], time[-1] * RATE, atol=1e-6)


def test_no_frames_or_no_samples() -> None:
    time = np.arange(3) / 30
    assert not resample_track(steady_track(time, np.zeros(3, bool)), time, np.zeros(2))[3].any()
    assert resample_track(steady_track(time), time, np.zeros(0))[0].shape == (0, 15, 3)
    assert not resample_track(HandTrack(HandState.UNTRACKED), np.zeros(0), np.zeros(4))[3].any()


def test_bad_tracks_are_named() -> None:
    time = np.arange(4) / 30
    source = steady_track(time)
    with pytest.raises(UserError, match=r"track\.valid: got \(4,\), expected shape \(5,\)"):
        resample_track(source, np.arange(5) / 30, time)
    with pytest.raises(UserError, match="time_s: got 'not ascending'"):
        resample_track(source, time[::-1], time)
    source.theta[2, 3, 1] = np.nan
    with pytest.raises(UserError, match=r"track\.theta of frame 2"):
        resample_track(source, time, time)


@pytest.mark.parametrize("fps", [12.0, 29.97, 30.0, 60.0])
@pytest.mark.parametrize("time_scale", [1.0, WILD_TIME_SCALE])
def test_frame_j_of_chunk_i_is_at_its_model_time(fps: float, time_scale: float) -> None:
    clip = steady_clip(fps, 2.51, time_scale)
    features, labelled = chunk_features(clip)
    n = clip.n_chunks
    assert n == int(2.51 / time_scale) and features.shape == (2, n, 15, 99) and features.dtype == np.float32
    assert labelled[Hand.RIGHT].all() and not labelled[Hand.LEFT].any() and (features[Hand.LEFT] == 0).all()
    model_s = np.arange(n)[:, None] + np.arange(15) / 15
    source_s = (model_s * time_scale)[..., None]
    theta, rot, wrist = features_to_pose(torch.from_numpy(features[Hand.RIGHT]), Hand.RIGHT)
    last = clip.pose_time_s[-1]
    expected = np.minimum(source_s, last) * RATE
    np.testing.assert_allclose(wrist.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(matrix_to_axis_angle(rot).numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(matrix_to_axis_angle(theta)[:, :, 3].numpy(), expected[..., ::-1], atol=1e-4)


def test_a_clip_of_whole_chunks_is_labelled_to_its_end() -> None:
    for fps in (10.0, 15.0, 24.0, 30.0, 59.94):
        _, labelled = chunk_features(steady_clip(fps, 2.0, 1.0))
        assert labelled[Hand.RIGHT].tolist() == [True, True], fps


def test_the_tail_is_dropped_and_a_short_clip_has_no_chunk() -> None:
    assert chunk_features(steady_clip(30, 0.83, WILD_TIME_SCALE))[0].shape[1] == 1
    assert chunk_features(steady_clip(30, 0.83, 1.0))[0].shape == (2, 0, 15, 99)


def test_one_bad_frame_costs_its_chunk_only() -> None:
    clip = steady_clip(30, 3.0, 1.0)
    usable = np.ones(90, bool)
    usable[40] = False
    clip = replace(clip, hands=(clip.hands[0], steady_track(clip.pose_time_s, usable)))
    features, labelled = chunk_features(clip)
    assert labelled[Hand.RIGHT].tolist() == [True, False, True]
    assert (features[Hand.RIGHT, 1] == 0).all() and (features[Hand.RIGHT, 2] != 0).any()


def test_an_untracked_hand_is_never_labelled() -> None:
    clip = steady_clip(30, 2.0, 1.0)
    untracked = replace(clip.hands[1], state=HandState.UNTRACKED)
    features, labelled = chunk_features(replace(clip, hands=(untracked, untracked)))
    assert not labelled.any() and (features == 0).all()
