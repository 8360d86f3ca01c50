"""MANO fitting: known poses come back, bad frames stay out, real sequences fit."""

import numpy as np
import pytest
import torch

from jala_ray.hands.fitting import Descent, FitWeights, fit_mano
from jala_ray.hands.joints import convert_joints
from jala_ray.hands.mano import ManoHand
from jala_ray.hands.rotations import axis_angle_to_matrix
from jala_ray.types import Hand, UserError


def posed(side: Hand, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joints (T, 21, 3) of a smoothly moving hand with random wrist turns, its wrist rotations and shape."""
    hand = ManoHand.load(None, side)
    ends = 0.35 * torch.randn(2, 15, 3) * torch.tensor([0.3, 0.4, 1.0]) + hand.hands_mean.reshape(15, 3)
    t = torch.linspace(0, 1, frames)[:, None, None]
    theta = ends[0] * (1 - t) + ends[1] * t
    rot, wrist = 1.5 * torch.randn(3) + t[:, 0] * torch.randn(3), t[:, 0] * torch.randn(3)
    beta = torch.randn(10)
    matrices = axis_angle_to_matrix(theta), axis_angle_to_matrix(rot)
    return hand.joints(*matrices, wrist, beta).numpy(), matrices[1].numpy(), beta.numpy()


def joints_of(result, side: Hand) -> np.ndarray:
    theta, rot = (axis_angle_to_matrix(torch.from_numpy(a)) for a in (result.theta, result.rot))
    hand = ManoHand.load(None, side)
    return hand.joints(theta, rot, torch.from_numpy(result.wrist), torch.from_numpy(result.beta)).numpy()


def degrees_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cosine = (np.einsum("tij,tij->t", a, b) - 1) / 2
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


@pytest.mark.parametrize("side", Hand)
def test_recovers_known_poses(side: Hand) -> None:
    joints, rot, _ = posed(side, 40)
    result = fit_mano(joints, None, side)
    error = np.linalg.norm(joints_of(result, side) - joints, axis=-1).mean(-1)
    assert error.max() < 2e-3, "every frame below 2 mm"
    assert error.mean() < 1e-3
    np.testing.assert_allclose(result.residual_m, error, atol=1e-5)
    assert degrees_between(axis_angle_to_matrix(torch.from_numpy(result.rot)).numpy(), rot).max() < 4


def test_recovers_with_noise_and_smoothing_helps() -> None:
    joints, _, _ = posed(Hand.RIGHT, 60)
    noisy = joints + 0.002 * np.random.default_rng(0).normal(size=joints.shape)
    errors = []
    for smooth in (0.0, 3.0):
        result = fit_mano(noisy, None, Hand.RIGHT, weights=FitWeights(smooth=smooth))
        errors.append(np.linalg.norm(joints_of(result, Hand.RIGHT) - joints, axis=-1).mean())
    assert errors[0] < 2.5e-3 and errors[1] < 0.9 * errors[0]


def test_known_shape_is_kept() -> None:
    joints, _, beta = posed(Hand.LEFT, 10)
    result = fit_mano(joints, None, Hand.LEFT, beta=beta)
    np.testing.assert_array_equal(result.beta, beta)
    assert result.residual_m.max() < 1e-3


def test_invalid_and_nan_frames_are_left_out_and_change_nothing() -> None:
    joints, _, beta = posed(Hand.RIGHT, 8)
    alone = fit_mano(joints[[0, 1, 4, 6, 7]], None, Hand.RIGHT, beta=beta, descent=Descent(50))
    valid = np.ones(8, bool)
    valid[[2, 3]] = False
    joints[2] = 1e6
    joints[5, 9, 1] = np.nan
    result = fit_mano(joints, valid, Hand.RIGHT, beta=beta, descent=Descent(50))
    out = [2, 3, 5]
    assert np.isnan(result.residual_m[out]).all() and np.isfinite(np.delete(result.residual_m, out)).all()
    assert (result.theta[out] == 0).all() and (result.wrist[out] == 0).all()
    np.testing.assert_allclose(np.delete(result.theta, out, 0), alone.theta, atol=1e-4)


def test_the_wrong_side_fits_badly() -> None:
    joints, _, _ = posed(Hand.RIGHT, 10)
    right, left = (fit_mano(joints, None, side).residual_m.mean() for side in (Hand.RIGHT, Hand.LEFT))
    assert left > 3 * right


def test_bad_input_is_named() -> None:
    joints, _, _ = posed(Hand.RIGHT, 3)
    with pytest.raises(UserError, match=r"joints: got \(3, 16, 3\)"):
        fit_mano(joints[:, :16], None, Hand.RIGHT)
    with pytest.raises(UserError, match=r"valid: got \(2,\)"):
        fit_mano(joints, np.ones(2, bool), Hand.RIGHT)
    with pytest.raises(UserError, match="0 of 3 frames"):
        fit_mano(joints * np.nan, None, Hand.RIGHT)
    with pytest.raises(UserError, match="Give metres"):
        fit_mano(joints * 1000, None, Hand.RIGHT)
    with pytest.raises(UserError, match="the RIGHT hand"):
        fit_mano(joints, None, Hand.RIGHT, hand=ManoHand.load(None, Hand.LEFT))


@pytest.mark.parametrize(("side", "name"), [(Hand.LEFT, "joints_left"), (Hand.RIGHT, "joints_right")])
def test_arctic_fits_within_three_millimetres(shared_data, side: Hand, name: str) -> None:
    """The shipped hand is not MANO: what its shape space cannot express stays as a residual near 2 mm."""
    sequence = np.load(shared_data / "arctic_dexmachina" / "s01_mixer_use_01.npz")
    result = fit_mano(sequence[name][::8], None, side)
    assert result.residual_m.mean() < 3e-3 and np.percentile(result.residual_m, 95) < 4e-3
    # ARCTIC's own wrist rotation is for MANO; the shipped hand's axes agree with MANO's to a few degrees.
    given = axis_angle_to_matrix(torch.from_numpy(sequence["rot_l" if side is Hand.LEFT else "rot_r"][::8])).numpy()
    found = axis_angle_to_matrix(torch.from_numpy(result.rot)).numpy()
    assert np.median(degrees_between(given, found)) < 15


def test_vitra_joints_fit(vitra_episode) -> None:
    joints = convert_joints(vitra_episode["right"]["joints_camspace"], source="mediapipe", target="mano")
    result = fit_mano(joints, vitra_episode["right"]["kept_frames"], Hand.RIGHT)
    assert result.residual_m.mean() < 6e-3
