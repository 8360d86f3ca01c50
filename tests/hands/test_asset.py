"""The shipped hand: it is what the generator makes, and it is a hand."""

import numpy as np
import pytest

from jala_ray.hands.__main__ import main
from jala_ray.hands.asset import make_hand
from jala_ray.hands.mano import ASSET_SHAPES, ASSETS, TIP_IDS, load_asset
from jala_ray.types import Hand


@pytest.fixture(scope="module", params=list(Hand), ids=["left", "right"])
def hand(request) -> dict[str, np.ndarray]:
    return load_asset(None, request.param)


@pytest.mark.parametrize("side", Hand)
def test_the_shipped_file_is_what_the_generator_makes(side: Hand) -> None:
    shipped, made = load_asset(None, side), make_hand(side)
    assert set(shipped) == set(made) == set(ASSET_SHAPES)
    for name, value in made.items():
        assert shipped[name].dtype == value.dtype
        np.testing.assert_allclose(shipped[name], value, atol=2e-6, err_msg=name)


def test_both_files_are_small() -> None:
    assert sum(path.stat().st_size for path in ASSETS.glob("*.npz")) < 300_000


def test_surface_is_one_disc_with_a_wrist_ring_of_16(hand) -> None:
    faces = hand["f"]
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    assert len(np.unique(directed, axis=0)) == len(directed), "faces are wound alike"
    edges, count = np.unique(np.sort(directed, 1), axis=0, return_counts=True)
    assert set(count) == {1, 2} and (count == 1).sum() == 16
    assert len(np.unique(faces)) == 778 and 778 - len(edges) + len(faces) == 1
    corners = hand["v_template"].astype(float)[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    assert area.min() > 1e-8
    centred = corners - corners.mean((0, 1))
    litres = 1e3 * np.einsum("fi,fi->", centred[:, 0], np.cross(centred[:, 1], centred[:, 2])) / 6
    assert 0.15 < litres < 0.6, "faces look outwards, and the volume is an adult hand's"


def test_weights_are_smooth_and_fingertips_follow_their_own_finger(hand) -> None:
    weights, faces = hand["weights"], hand["f"]
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    assert weights.min() >= 0
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    assert np.abs(weights[edges[:, 0]] - weights[edges[:, 1]]).max() < 0.6
    last_joint = dict(zip(TIP_IDS, (15, 3, 6, 12, 9), strict=True))
    for tip, joint in last_joint.items():
        assert weights[tip, joint] > 0.99


def test_regressor_rows_sum_to_one_and_joints_lie_inside(hand) -> None:
    regressor = hand["J_regressor"].astype(float)
    np.testing.assert_allclose(regressor.sum(1), 1, atol=1e-5)
    joints = regressor @ hand["v_template"]
    nearest = np.linalg.norm(joints[:, None] - hand["v_template"], axis=-1).min(1)
    assert (nearest > 0.004).all() and (nearest < 0.03).all()


def test_proportions_are_an_adult_hands(hand) -> None:
    joints = hand["J_regressor"] @ hand["v_template"]
    middle = np.linalg.norm(hand["v_template"][443] - joints[0])
    assert 0.17 < middle < 0.20, "hand length, wrist to middle fingertip"
    assert 0.055 < np.linalg.norm(joints[1] - joints[7]) < 0.075, "knuckle span, index to pinky"


def test_shape_directions_are_independent_and_about_a_standard_deviation(hand) -> None:
    directions = hand["shapedirs"].reshape(-1, 10).astype(float)
    assert np.linalg.matrix_rank(directions, tol=1e-4) == 10
    largest = np.linalg.norm(hand["shapedirs"], axis=1).max(0)
    assert (largest > 1e-3).all() and (largest < 1.5e-2).all()


def test_pose_blend_shapes_are_small_but_there(hand) -> None:
    largest = np.abs(hand["posedirs"]).max((0, 1))
    assert (largest > 1e-5).all() and (largest < 2e-3).all()


def test_pose_space_is_orthonormal(hand) -> None:
    components = hand["hands_components"].astype(float)
    np.testing.assert_allclose(components @ components.T, np.eye(45), atol=1e-5)


def test_generator_runs_from_the_command_line(tmp_path) -> None:
    assert main(["make-asset", str(tmp_path)]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"hand_left.npz", "hand_right.npz"}
    load_asset(tmp_path, Hand.LEFT)
