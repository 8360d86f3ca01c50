"""Projection, scaling and rigid transforms."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from jala_ray.hands import camera as cam
from jala_ray.types import Camera, UserError

CAMERA = Camera(600.0, 620.0, 330.0, 250.0, 640, 480)


def random_rigid(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([Rotation.random(n, rng=rng).as_matrix(), rng.normal(size=(n, 3, 1))], -1)


def test_projection_is_the_pinhole_formula() -> None:
    points = np.array([[[0.0, 0, 1], [0.1, -0.2, 2.0]]])
    expected = [[[330, 250], [330 + 600 * 0.05, 250 - 620 * 0.1]]]
    np.testing.assert_allclose(cam.project(CAMERA, points), expected)
    torch.testing.assert_close(
        cam.project(CAMERA, torch.from_numpy(points)), torch.tensor(expected, dtype=torch.float64)
    )


def test_points_behind_the_camera_have_no_pixel() -> None:
    points = np.array([[0.1, 0.1, -1.0], [0.1, 0.1, 0.0], [0.1, 0.1, 1.0]])
    assert np.isnan(cam.project(CAMERA, points)).all(1).tolist() == [True, True, False]


def test_scaling_moves_every_pixel_with_the_image() -> None:
    points = np.random.default_rng(0).normal(loc=(0, 0, 5), size=(20, 3))
    small = cam.scale_camera(CAMERA, 448, 448)
    assert (small.width, small.height) == (448, 448)
    np.testing.assert_allclose(cam.project(small, points), cam.project(CAMERA, points) * [448 / 640, 448 / 480])
    with pytest.raises(UserError, match="camera size"):
        cam.scale_camera(CAMERA, 0, 10)


def test_intrinsic_matrix() -> None:
    k = np.array([[600.0, 0, 330], [0, 620, 250], [0, 0, 1]])
    assert cam.camera_from_matrix(k, 640, 480) == CAMERA
    for bad in (k[:2], k * 2, k * np.nan, -k, k + np.eye(3, k=1)):
        with pytest.raises(UserError, match="intrinsics"):
            cam.camera_from_matrix(bad, 640, 480)


def test_inverse_and_composition() -> None:
    a, b = random_rigid(5, 0), random_rigid(5, 1)
    points = np.random.default_rng(2).normal(size=(5, 21, 3))
    both = cam.transform_points(cam.compose_rigid(a, b), points)
    np.testing.assert_allclose(both, cam.transform_points(a, cam.transform_points(b, points)))
    np.testing.assert_allclose(cam.transform_points(cam.invert_rigid(a), cam.transform_points(a, points)), points)
    np.testing.assert_allclose(cam.transform_points(a, points)[:, 0], cam.transform_points(a, points[:, 0]))


def test_first_camera_undoes_camera_motion() -> None:
    """A hand that is still in the world is still in the first camera, whatever the camera does."""
    world_to_camera = random_rigid(6)
    point = np.array([0.1, 0.2, 0.3])
    rotation = Rotation.from_rotvec([0.3, -0.2, 1.0]).as_matrix()
    seen = cam.transform_points(world_to_camera, np.tile(point, (6, 1)))
    first = cam.first_camera_from_extrinsics(world_to_camera)
    np.testing.assert_allclose(first[0], np.eye(3, 4), atol=1e-12)
    rot, wrist = cam.pose_to_first_camera(first, world_to_camera[:, :, :3] @ rotation, seen)
    np.testing.assert_allclose(wrist, np.tile(seen[0], (6, 1)), atol=1e-12)
    np.testing.assert_allclose(rot, np.tile(world_to_camera[0, :, :3] @ rotation, (6, 1, 1)), atol=1e-12)
    four = np.concatenate([world_to_camera, np.tile([[[0, 0, 0, 1.0]]], (6, 1, 1))], 1)
    np.testing.assert_allclose(cam.first_camera_from_extrinsics(four), first)


def test_bad_extrinsics_are_named() -> None:
    for bad in (
        np.eye(3),
        np.full((2, 3, 4), np.nan),
        2 * random_rigid(2),
        random_rigid(2)[0],
        np.zeros((0, 3, 4)),
    ):
        with pytest.raises(UserError, match="extrinsics"):
            cam.first_camera_from_extrinsics(bad)


def test_vitra_extrinsics_take_world_joints_to_the_camera(vitra_episode) -> None:
    right = vitra_episode["right"]
    seen = cam.transform_points(vitra_episode["extrinsics"], right["joints_worldspace"])
    np.testing.assert_allclose(seen, right["joints_camspace"], atol=1e-6)
    camera = cam.scale_camera(cam.camera_from_matrix(vitra_episode["intrinsics"], 1440, 1080), 480, 368)
    pixels = cam.project(camera, right["joints_camspace"])
    assert ((pixels > -50) & (pixels < [530, 420])).all()
