"""Rotation conversions against SciPy, at ordinary and at awkward angles."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation, Slerp

from jala_ray.hands import rotations as rot

ANGLES = (0.0, 1e-12, 1e-8, 1e-4, 0.0099, 0.0101, 0.5, 2.0, 3.0, math.pi - 1e-3, math.pi - 1e-7, math.pi)


def axis_angles(angle: float, n: int = 50) -> torch.Tensor:
    axis = torch.nn.functional.normalize(torch.randn(n, 3, dtype=torch.float64), dim=-1)
    axis[:3] = torch.eye(3, dtype=torch.float64)
    return axis * angle


@pytest.mark.parametrize("angle", ANGLES)
def test_both_ways_agree_with_scipy(angle: float) -> None:
    vector = axis_angles(angle)
    reference = Rotation.from_rotvec(vector.numpy()).as_matrix()
    matrix = rot.axis_angle_to_matrix(vector)
    np.testing.assert_allclose(matrix.numpy(), reference, atol=1e-12)
    back = rot.matrix_to_axis_angle(torch.from_numpy(reference))
    np.testing.assert_allclose(Rotation.from_rotvec(back.numpy()).as_matrix(), reference, atol=1e-9)
    assert float(back.norm(dim=-1).max()) <= math.pi + 1e-9
    if angle < math.pi - 1e-6:
        np.testing.assert_allclose(back.numpy(), vector.numpy(), atol=1e-8)


def test_quaternions_agree_with_scipy() -> None:
    matrix = torch.from_numpy(Rotation.random(500, rng=np.random.default_rng(0)).as_matrix())
    expected = Rotation.from_matrix(matrix.numpy()).as_quat(canonical=True, scalar_first=True)
    np.testing.assert_allclose(rot.matrix_to_quaternion(matrix).numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("angle", ANGLES)
def test_gradients_are_finite(angle: float) -> None:
    vector = axis_angles(angle).float().requires_grad_()
    matrix = rot.axis_angle_to_matrix(vector)
    (rot.matrix_to_axis_angle(matrix).sum() + rot.matrix_to_6d(matrix).square().sum()).backward()
    assert vector.grad is not None and torch.isfinite(vector.grad).all()


@pytest.mark.parametrize("angle", [0.0, 1e-3, 1.0, 2.5])
def test_gradient_of_the_round_trip_is_the_identity(angle: float) -> None:
    vector = axis_angles(angle, 4)[3] if angle else torch.zeros(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: rot.matrix_to_axis_angle(rot.axis_angle_to_matrix(v)), vector
    )
    torch.testing.assert_close(jacobian, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_6d_is_the_first_two_columns_and_maps_back() -> None:
    matrix = torch.from_numpy(Rotation.random(40, rng=np.random.default_rng(1)).as_matrix()).reshape(4, 10, 3, 3)
    six = rot.matrix_to_6d(matrix)
    assert six.shape == (4, 10, 6)
    torch.testing.assert_close(six[..., :3], matrix[..., :, 0])
    torch.testing.assert_close(six[..., 3:], matrix[..., :, 1])
    torch.testing.assert_close(rot.rotation_6d_to_matrix(six), matrix)


def test_gram_schmidt_keeps_the_first_column_and_gives_a_rotation() -> None:
    six = torch.randn(200, 6, dtype=torch.float64)
    matrix = rot.rotation_6d_to_matrix(six)
    eye = torch.eye(3, dtype=torch.float64).expand(200, 3, 3)
    torch.testing.assert_close(matrix @ matrix.mT, eye)
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(200, dtype=torch.float64))
    torch.testing.assert_close(matrix[..., 0], torch.nn.functional.normalize(six[:, :3], dim=-1))


def test_projection_finds_the_nearest_rotation() -> None:
    exact = torch.from_numpy(Rotation.random(100, rng=np.random.default_rng(2)).as_matrix())
    noisy = exact + 0.1 * torch.randn(100, 3, 3, dtype=torch.float64)
    found = rot.project_to_rotation(noisy)
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(100, dtype=torch.float64))
    assert ((found - noisy).norm(dim=(-2, -1)) <= (exact - noisy).norm(dim=(-2, -1)) + 1e-12).all()
    reflection = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    torch.testing.assert_close(torch.linalg.det(rot.project_to_rotation(reflection)), torch.tensor(1.0))


def test_slerp_agrees_with_scipy() -> None:
    ends = Rotation.random(2, rng=np.random.default_rng(3))
    times = np.linspace(0, 1, 11)
    expected = Slerp([0, 1], ends)(times).as_matrix()
    m0, m1 = torch.from_numpy(ends.as_matrix())
    found = rot.slerp(m0.expand(11, 3, 3), m1.expand(11, 3, 3), torch.from_numpy(times))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
