"""Features: layout, mirroring, round trip."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from jala_ray.hands.features import clip_features, features_to_pose, mirror_rotation, pose_to_features
from jala_ray.types import Hand, HandState, HandTrack, UserError


def random_pose(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rotations = torch.from_numpy(Rotation.random(n * 16, rng=np.random.default_rng(0)).as_matrix()).reshape(n, 16, 3, 3)
    return rotations[:, 1:], rotations[:, 0], torch.randn(n, 3, dtype=torch.float64)


@pytest.mark.parametrize("side", Hand)
def test_round_trip(side: Hand) -> None:
    pose = random_pose(7)
    features = pose_to_features(*pose, side)
    assert features.shape == (7, 99)
    for found, expected in zip(features_to_pose(features, side), pose, strict=True):
        torch.testing.assert_close(found, expected)


def test_layout_is_wrist_rotation_then_position_then_fingers() -> None:
    theta, rot, wrist = random_pose(3)
    features = pose_to_features(theta, rot, wrist, Hand.RIGHT)
    torch.testing.assert_close(features[:, :3], rot[..., 0])
    torch.testing.assert_close(features[:, 3:6], rot[..., 1])
    torch.testing.assert_close(features[:, 6:9], wrist)
    torch.testing.assert_close(features[:, 9 + 6 * 4 : 9 + 6 * 4 + 3], theta[:, 4, :, 0])


def test_left_fingers_are_mirrored_and_the_left_wrist_is_not() -> None:
    """A left hand that mirrors a right hand has the right hand's finger features."""
    vector = np.random.default_rng(0).normal(size=(5, 15, 3))
    right = torch.from_numpy(Rotation.from_rotvec(vector.reshape(-1, 3)).as_matrix()).reshape(5, 15, 3, 3)
    mirrored = Rotation.from_rotvec((vector * [1, -1, -1]).reshape(-1, 3)).as_matrix()
    left = torch.from_numpy(mirrored).reshape(5, 15, 3, 3)
    torch.testing.assert_close(mirror_rotation(left), right)
    _, rot, wrist = random_pose(5)
    a = pose_to_features(left, rot, wrist, Hand.LEFT)
    b = pose_to_features(right, rot, wrist, Hand.RIGHT)
    torch.testing.assert_close(a, b)


def track(valid: list[bool]) -> HandTrack:
    t = len(valid)
    rng = np.random.default_rng(1)
    theta, rot, wrist = (rng.normal(size=s).astype(np.float32) for s in ((t, 15, 3), (t, 3), (t, 3)))
    return HandTrack(HandState.LABELLED, np.array(valid), theta, rot, wrist)


def test_clip_features_zeroes_invalid_frames_whatever_they_hold() -> None:
    source = track([True, False, True])
    source.theta[1] = np.nan
    features = clip_features(source, Hand.LEFT)
    assert features.shape == (3, 99) and features.dtype == np.float32
    assert (features[1] == 0).all() and np.abs(features[[0, 2]]).min(0).max() > 0
    np.testing.assert_allclose(features[0, 6:9], source.wrist[0])


def test_bad_input_is_named() -> None:
    source = track([True, True])
    source.rot[1] = np.nan
    with pytest.raises(UserError, match="frame 1"):
        clip_features(source, Hand.RIGHT)
    with pytest.raises(UserError, match="one length"):
        clip_features(HandTrack(HandState.LABELLED, np.ones(3, bool)), Hand.RIGHT)
    with pytest.raises(UserError, match=r"features: got \(2, 98\)"):
        features_to_pose(torch.zeros(2, 98), Hand.LEFT)
    with pytest.raises(UserError, match="theta"):
        pose_to_features(torch.zeros(2, 45), torch.zeros(2, 3, 3), torch.zeros(2, 3), Hand.LEFT)
