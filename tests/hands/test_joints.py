"""Joint orders, on paper and on real data."""

import numpy as np
import pytest
import torch

from jala_ray.hands.joints import (
    JOINT_ORDERS,
    MANO_ORDER,
    MANO_PARENTS,
    MEDIAPIPE_ORDER,
    convert_joints,
    joint_permutation,
)
from jala_ray.hands.unpickle import RestrictedUnpickler
from jala_ray.types import UserError


def bone_lengths(joints: np.ndarray) -> np.ndarray:
    """(T, 20) in cm for joints (T, 21, 3) in MANO order."""
    return 100 * np.linalg.norm(joints[:, 1:] - joints[:, MANO_PARENTS[1:]], axis=-1)


@pytest.mark.parametrize("source", JOINT_ORDERS)
@pytest.mark.parametrize("target", JOINT_ORDERS)
def test_conversions_are_permutations_that_undo_each_other(source: str, target: str) -> None:
    there, back = joint_permutation(source, target), joint_permutation(target, source)
    assert sorted(there) == list(range(21))
    assert [there[i] for i in back] == list(range(21))
    assert [JOINT_ORDERS[source][i] for i in there] == list(JOINT_ORDERS[target])


def test_mediapipe_to_mano_is_the_known_table() -> None:
    expected = [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3, 4, 8, 12, 16, 20]
    assert joint_permutation("mediapipe", "mano") == expected
    points = torch.randn(2, 5, 21, 3)
    torch.testing.assert_close(convert_joints(points, source="mediapipe", target="mano"), points[..., expected, :])


def test_every_bone_stays_within_one_finger() -> None:
    for child, parent in enumerate(MANO_PARENTS[1:], start=1):
        assert parent == 0 or MANO_ORDER[child][:4] == MANO_ORDER[parent][:4]
    assert set(MANO_ORDER) == set(MEDIAPIPE_ORDER)


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match=r"source: got 'openpose', expected one of .*mediapipe"):
        convert_joints(np.zeros((21, 3)), source="openpose", target="mano")
    with pytest.raises(UserError, match=r"joints: got \(16, 3\)"):
        convert_joints(np.zeros((16, 3)), source="mano", target="mediapipe")


def test_arctic_is_in_mano_order(shared_data) -> None:
    for name in ("joints_left", "joints_right"):
        joints = np.load(shared_data / "arctic_dexmachina" / "s01_mixer_use_01.npz")[name]
        lengths = bone_lengths(joints)
        assert lengths.max() < 10.5 and lengths[:, [1, 2, 4, 5, 7, 8, 10, 11, *range(13, 20)]].max() < 5
        # The skeleton is rigid but for the skinned tips: in a wrong order, bones would stretch with the pose.
        assert lengths[:, :15].std(0).max() < 0.01


def test_vitra_and_dexretargeting_are_in_mediapipe_order(shared_data, vitra_episode) -> None:
    vitra = vitra_episode["right"]["joints_camspace"]
    with (shared_data / "dexretargeting_hand" / "human_joint_right.pkl").open("rb") as file:
        dex = np.stack(RestrictedUnpickler(file).load())
    for joints in (vitra, dex):
        right = bone_lengths(convert_joints(joints, source="mediapipe", target="mano"))
        wrong = bone_lengths(joints)
        assert right[:, [1, 2, 4, 5, 7, 8, 10, 11, *range(13, 20)]].max() < 7
        assert right.std(0).max() < 0.5 * wrong.std(0).max()
