"""Skinning against smplx.MANO on the same asset, and the contract of ManoHand."""

import numpy as np
import pytest
import smplx
import torch
from smplx.utils import Struct
from smplx.vertex_ids import vertex_ids

from jala_ray.hands.joints import MANO_ORDER, MANO_PARENTS
from jala_ray.hands.mano import TIP_IDS, ManoHand, load_asset, load_pair
from jala_ray.hands.rotations import axis_angle_to_matrix
from jala_ray.types import Hand, UserError


def smplx_hand(arrays: dict[str, np.ndarray], side: Hand) -> smplx.MANO:
    fields = {k: v for k, v in arrays.items() if k not in ("tip_ids", "side")}
    return smplx.MANO(
        "",
        is_rhand=side is Hand.RIGHT,
        data_struct=Struct(**fields),
        use_pca=False,
        flat_hand_mean=True,
        dtype=torch.float64,
    )


def random_pose(*lead: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    theta, rot = 0.6 * torch.randn(*lead, 15, 3, dtype=dtype), 1.5 * torch.randn(*lead, 3, dtype=dtype)
    return theta, rot, torch.randn(*lead, 3, dtype=dtype), torch.randn(*lead, 10, dtype=dtype)


@pytest.mark.parametrize("side", Hand)
@pytest.mark.parametrize("random_blend_shapes", [False, True])
def test_agrees_with_smplx(side: Hand, random_blend_shapes: bool) -> None:
    arrays = load_asset(None, side)
    if random_blend_shapes:  # the shipped pose blend shapes vanish at the fingertips; these do not
        arrays["posedirs"] = (1e-3 * np.random.randn(778, 3, 135)).astype(np.float32)
        arrays["shapedirs"] = (3e-3 * np.random.randn(778, 3, 10)).astype(np.float32)
    hand = ManoHand(arrays).double()
    theta, rot, wrist, beta = random_pose(20)
    mesh = hand(axis_angle_to_matrix(theta), axis_angle_to_matrix(rot), wrist, beta)
    transl = wrist - hand.rest_joints(beta)[:, 0]
    reference = smplx_hand(arrays, side)(betas=beta, global_orient=rot, hand_pose=theta.flatten(1), transl=transl)
    torch.testing.assert_close(mesh.vertices, reference.vertices, atol=1e-5, rtol=0)
    torch.testing.assert_close(mesh.joints[:, :16], reference.joints, atol=1e-5, rtol=0)
    torch.testing.assert_close(mesh.joints[:, 16:], reference.vertices[:, TIP_IDS], atol=1e-5, rtol=0)
    torch.testing.assert_close(mesh.joints[:, 0], wrist)
    alone = hand.joints(axis_angle_to_matrix(theta), axis_angle_to_matrix(rot), wrist, beta)
    torch.testing.assert_close(alone, mesh.joints)


def test_tip_ids_are_those_of_smplx() -> None:
    assert tuple(vertex_ids["mano"].values()) == TIP_IDS


def test_transl_is_not_the_wrist() -> None:
    """MANO's origin is not its wrist: the two are about 10 cm apart, as in VITRA."""
    hand = ManoHand.load(None, Hand.RIGHT)
    assert 0.08 < float(hand.rest_joints(torch.zeros(10))[0].norm()) < 0.12


def test_float32_and_any_leading_dimensions() -> None:
    hand = ManoHand.load(None, Hand.LEFT)
    theta, rot, wrist, _ = random_pose(4, 5, dtype=torch.float32)
    beta = torch.randn(10)
    theta_m, rot_m = axis_angle_to_matrix(theta), axis_angle_to_matrix(rot)
    mesh = hand(theta_m, rot_m, wrist, beta)
    assert mesh.joints.shape == (4, 5, 21, 3) and mesh.vertices.shape == (4, 5, 778, 3)
    assert mesh.vertices.dtype == torch.float32
    one = hand.joints(theta_m[2, 3], rot_m[2, 3], wrist[2, 3], beta)
    torch.testing.assert_close(mesh.joints[2, 3], one, atol=1e-5, rtol=0)
    still = hand.joints(theta_m, torch.eye(3), torch.zeros(3), torch.zeros(10))
    assert still.shape == (4, 5, 21, 3)


def test_left_is_the_mirror_image_of_right() -> None:
    left, right = load_pair()
    theta, rot, wrist, beta = random_pose(6, dtype=torch.float32)
    turn, flip = torch.tensor([1.0, -1.0, -1.0]), torch.tensor([-1.0, 1.0, 1.0])
    a = right(axis_angle_to_matrix(theta), axis_angle_to_matrix(rot), wrist, beta)
    b = left(axis_angle_to_matrix(theta * turn), axis_angle_to_matrix(rot * turn), wrist * flip, beta)
    torch.testing.assert_close(a.vertices * flip, b.vertices, atol=2e-6, rtol=0)
    torch.testing.assert_close(a.joints * flip, b.joints, atol=2e-6, rtol=0)


def test_flexion_curls_every_finger_into_the_palm() -> None:
    """Right hand: fingers along -x, palm towards -y; a positive turn about z bends the four fingers down."""
    hand = ManoHand.load(None, Hand.RIGHT)
    theta = torch.zeros(15, 3)
    flat = hand.joints(axis_angle_to_matrix(theta), torch.eye(3), torch.zeros(3), torch.zeros(10))
    theta[:12, 2] = 0.5
    bent = hand.joints(axis_angle_to_matrix(theta), torch.eye(3), torch.zeros(3), torch.zeros(10))
    tips = [MANO_ORDER.index(f"{finger}_tip") for finger in ("index", "middle", "ring", "pinky")]
    assert (flat[tips, 0] < -0.12).all() and (bent[tips, 1] < flat[tips, 1] - 0.03).all()
    assert flat[MANO_ORDER.index("thumb_tip"), 2] > flat[tips, 2].max() + 0.02


def test_bones_keep_their_length_under_any_pose() -> None:
    hand = ManoHand.load(None, Hand.RIGHT).double()
    theta, rot, wrist, _ = random_pose(8)
    joints = hand.joints(axis_angle_to_matrix(theta), axis_angle_to_matrix(rot), wrist, torch.zeros(10).double())
    bones = (joints[:, 1:16] - joints[:, MANO_PARENTS[1:16]]).norm(dim=-1)
    torch.testing.assert_close(bones, bones[:1].expand_as(bones))


@pytest.mark.parametrize(
    ("name", "index", "bad"),
    [("theta", 0, torch.zeros(2, 45)), ("rot", 1, torch.zeros(2, 3)), ("wrist", 2, torch.zeros(2, 4))],
)
def test_wrong_shapes_are_named(name: str, index: int, bad: torch.Tensor) -> None:
    hand = ManoHand.load(None, Hand.LEFT)
    args = [
        torch.eye(3).expand(2, 15, 3, 3),
        torch.eye(3).expand(2, 3, 3),
        torch.zeros(2, 3),
        torch.zeros(10),
    ]
    args[index] = bad
    with pytest.raises(UserError, match=rf"{name}: got .*expected shape"):
        hand(*args)


def test_wrong_dtype_is_named() -> None:
    hand = ManoHand.load(None, Hand.LEFT)
    with pytest.raises(UserError, match=r"theta: got torch\.float64"):
        hand(torch.eye(3).double().expand(15, 3, 3), torch.eye(3), torch.zeros(3), torch.zeros(10))


def test_bad_assets_are_refused_with_field_and_shape(tmp_path) -> None:
    path = tmp_path / "hand_right.npz"
    with pytest.raises(UserError, match="an existing npz file"):
        ManoHand.load(path, Hand.RIGHT)
    path.write_bytes(b"not a zip")
    with pytest.raises(UserError, match="readable npz"):
        ManoHand.load(path, Hand.RIGHT)
    good = load_asset(None, Hand.RIGHT)
    broken = {
        "weights.*missing": {k: v for k, v in good.items() if k != "weights"},
        r"shapedirs.*shape \(778, 3, 10\)": good | {"shapedirs": good["shapedirs"][..., :5]},
        "v_template.*finite": good | {"v_template": good["v_template"] * np.nan},
        "f: got 'float32'": good | {"f": good["f"].astype(np.float32)},
        "f: got .*vertex ids": good | {"f": good["f"] + 1},
        "kintree_table": good | {"kintree_table": good["kintree_table"][:, ::-1]},
        "side: got 0": good | {"side": np.array(0)},
    }
    for message, arrays in broken.items():
        np.savez(path, allow_pickle=False, **arrays)
        with pytest.raises(UserError, match=message):
            ManoHand.load(tmp_path, Hand.RIGHT)
    np.savez(path, allow_pickle=True, **(good | {"weights": np.array([{}], dtype=object)}))
    with pytest.raises(UserError, match="without pickles"):
        ManoHand.load(path, Hand.RIGHT)
    with pytest.raises(UserError, match="a folder"):
        load_pair(path)
