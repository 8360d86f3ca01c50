"""Generator of the shipped hand: a procedural, MANO-compatible right hand and its mirror image.

It stands in for MANO wherever MANO's licence does not let the original travel: same topology class (778
vertices, 1538 faces, one open ring at the wrist), joint order, axes (right hand: fingers along -x, palm down
-y, thumb towards +z) and fingertip ids, with proportions of an adult hand (phalanx lengths of Buryanov and
Kotiuk, 2010). Not a copy of MANO: its shape space is ten named, designed directions. Deterministic; run by
`python -m jala_ray.hands make-asset`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from jala_ray.hands import asset_mesh as mesh
from jala_ray.hands.mano import KINEMATIC_PARENTS, N_JOINTS, N_VERTICES, TIP_IDS, validate_asset
from jala_ray.types import HAND_NAMES, Hand

SHAPE_DIRECTIONS = (
    "size",
    "palm_width",
    "palm_length",
    "finger_length",
    "thumb_length",
    "index_against_pinky",
    "distal_against_proximal",
    "thumb_base",
    "thickness",
    "knuckle_arch",
)
"""What beta 0..9 do; one unit is about one standard deviation among adults."""
_STORE_STEP = 2.0**-20
"""Metres (about 1 um): displacement fields are rounded to it, so that the file stays small."""


def make_hand(side: Hand) -> dict[str, np.ndarray]:
    """All arrays of `mano.ASSET_SHAPES` for one side, float32 and int32."""
    right = _make_right()
    arrays = (right if side is Hand.RIGHT else _mirror(right)) | {"side": np.array(int(side), np.int32)}
    validate_asset(arrays, f"procedural {HAND_NAMES[side]} hand")
    return arrays


def write_assets(folder: Path) -> list[Path]:
    """Write `hand_left.npz` and `hand_right.npz` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for side in Hand:
        paths.append(folder / f"hand_{HAND_NAMES[side]}.npz")
        np.savez_compressed(paths[-1], allow_pickle=False, **make_hand(side))
    return paths


@cache
def _make_right() -> dict[str, np.ndarray]:
    skeleton = mesh.rest_skeleton()
    vertices, faces, tips = mesh.hand_mesh()
    order = _tips_last_to_ids(len(vertices), tips)
    vertices, faces = vertices[order], np.argsort(order)[faces]
    weights = _skin_weights(vertices, faces, skeleton)
    regressor = np.stack([_regress(vertices, weights[:, j], skeleton[j]) for j in range(N_JOINTS)])
    mean, components = _pose_space()
    kintree = np.stack([np.array((2**31 - 1, *KINEMATIC_PARENTS[1:])), np.arange(N_JOINTS)])
    return {
        "v_template": vertices.astype(np.float32),
        "f": faces.astype(np.int32),
        "J_regressor": regressor.astype(np.float32),
        "weights": weights.astype(np.float32),
        "shapedirs": _rounded(_shape_directions(vertices, weights, skeleton)),
        "posedirs": _rounded(_pose_directions(vertices, faces, weights)),
        "kintree_table": kintree.astype(np.int32),
        "hands_components": components.astype(np.float32),
        "hands_mean": mean.astype(np.float32),
        "tip_ids": np.array(TIP_IDS, np.int32),
    }


def _tips_last_to_ids(count: int, tips: dict[str, int]) -> np.ndarray:
    """Permutation (778,) that puts the fingertip vertices at MANO's ids and keeps the others in order."""
    wanted = {new: tips[name] for new, name in zip(TIP_IDS, tips, strict=True)}
    others = iter(v for v in range(count) if v not in set(wanted.values()))
    return np.array([wanted[i] if i in wanted else next(others) for i in range(count)])


def _rounded(x: np.ndarray) -> np.ndarray:
    return (np.round(x / _STORE_STEP) * _STORE_STEP).astype(np.float32)


def _bones(skeleton: np.ndarray) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Segments each of the 16 joints moves: the wrist's to all knuckles, a finger joint's to the next one."""
    root = [(skeleton[0], skeleton[k]) for k in (1, 4, 7, 10, 13)]
    child = {parent: j for j, parent in enumerate((*KINEMATIC_PARENTS, 15, 3, 6, 12, 9)) if parent > 0}
    return [root, *([(skeleton[j], skeleton[child[j]])] for j in range(1, N_JOINTS))]


def _skin_weights(vertices: np.ndarray, faces: np.ndarray, skeleton: np.ndarray) -> np.ndarray:
    """Weights (778, 16): soft assignment to the nearest bone; two bones share the ring at their joint."""
    bones = _bones(skeleton)
    distance = np.stack([np.min([mesh.segment_distance(vertices, a, b)[0] for a, b in part], 0) for part in bones], 1)
    score = np.exp(-(distance**2 - distance.min(1, keepdims=True) ** 2) / (2 * 0.0045**2))
    # A vertex on one finger does not follow another finger; the palm (owner -1) may follow any.
    finger = mesh.finger_of_joint()
    owner = finger[distance.argmin(1)][:, None]
    foreign = (owner >= 0) & (finger >= 0) & (owner != finger)
    weights = np.where(foreign | (score < 0.01), 0.0, score)
    weights /= weights.sum(1, keepdims=True)
    # Averaging softens the borders in the webs, where the nearest bone changes abruptly.
    for _ in range(3):
        weights = (weights + mesh.neighbour_mean(weights, faces)) / 2
    weights = np.where(weights < 0.004, 0.0, weights)
    return weights / weights.sum(1, keepdims=True)


def _regress(vertices: np.ndarray, weight: np.ndarray, joint: np.ndarray) -> np.ndarray:
    """Row (778,) of the joint regressor: Gaussian weights near the joint, corrected to give it exactly."""
    offset = vertices - joint
    near = np.exp(-(offset**2).sum(1) / (2 * 0.012**2)) * (0.05 + weight)
    moments = np.concatenate([np.ones((len(vertices), 1)), offset / 0.01], 1)
    solution = np.linalg.solve((moments * near[:, None]).T @ moments, np.array([1.0, 0, 0, 0]))
    row = near * (moments @ solution)
    row[np.abs(row) < 1e-5] = 0.0
    return row / row.sum()


def _shape_directions(vertices: np.ndarray, weights: np.ndarray, skeleton: np.ndarray) -> np.ndarray:
    """Displacements (778, 3, 10) of SHAPE_DIRECTIONS, metres a unit: smooth in place and skin weight."""
    from_wrist = vertices - skeleton[0]
    x, _, z = from_wrist.T
    finger = mesh.finger_of_joint()
    share = {name: weights[:, finger == i].sum(1, keepdims=True) for i, name in enumerate(mesh.CHAINS)}
    knuckle = {name: skeleton[1 + 3 * i] for i, name in enumerate(mesh.CHAINS)}
    stretch = {name: share[name] * _along(vertices - knuckle[name], _axis(skeleton, name)) for name in mesh.CHAINS}
    fingers = [name for name in mesh.CHAINS if name != "thumb"]
    # Palm fields reach full strength at the knuckles and carry the fingers along.
    reach = np.clip(-x / 0.08, 0, 1)[:, None]
    bend = sum(
        (_past(vertices, skeleton[2 + 3 * i], _axis(skeleton, n)) * share[n] for i, n in enumerate(mesh.CHAINS)),
        np.zeros_like(vertices),
    )
    zeros = np.zeros_like(x)
    fields = {
        "size": 0.045 * from_wrist,
        "palm_width": 0.05 * np.stack([zeros, zeros, z], 1) * (0.3 + 0.7 * reach),
        "palm_length": 0.004 * reach * np.array([-1.0, 0, 0]),
        "finger_length": 0.05 * sum((stretch[n] for n in fingers), np.zeros_like(vertices)),
        "thumb_length": 0.05 * stretch["thumb"],
        "index_against_pinky": 0.04 * (stretch["index"] - stretch["pinky"] - 0.5 * stretch["ring"]),
        "distal_against_proximal": 0.06 * bend - 0.03 * sum((stretch[n] for n in mesh.CHAINS), np.zeros_like(vertices)),
        "thumb_base": 0.003 * share["thumb"] * np.array([-0.7, 0.2, 0.7]),
        "thickness": 0.07 * _off_bone(vertices, skeleton),
        "knuckle_arch": 0.0025 * reach * np.stack([zeros, 1 - (z / 0.03) ** 2, zeros], 1).clip(-1, 1),
    }
    return np.stack([fields[name] for name in SHAPE_DIRECTIONS], -1)


def _axis(skeleton: np.ndarray, name: str) -> np.ndarray:
    first = 1 + 3 * mesh.CHAINS.index(name)
    direction = skeleton[first + 2] - skeleton[first]
    return direction / np.linalg.norm(direction)


def _along(offset: np.ndarray, axis: np.ndarray) -> np.ndarray:
    return np.clip(offset @ axis, 0, None)[:, None] * axis


def _past(vertices: np.ndarray, joint: np.ndarray, axis: np.ndarray) -> np.ndarray:
    return _along(vertices - joint, axis)


def _off_bone(vertices: np.ndarray, skeleton: np.ndarray) -> np.ndarray:
    """Vectors (778, 3) from the nearest bone's axis to each vertex."""
    ends = [segment for bones in _bones(skeleton) for segment in bones]
    found = [mesh.segment_distance(vertices, a, b) for a, b in ends]
    nearest = np.argmin([d for d, _ in found], 0)
    foot = np.stack([f for _, f in found])[nearest, np.arange(N_VERTICES)]
    return vertices - foot


def _pose_directions(vertices: np.ndarray, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pose blend shapes (778, 3, 135): skin bulges by up to about 1 mm where a joint bends."""
    normals = mesh.vertex_normals(vertices, faces)
    shaped = np.zeros((N_VERTICES, 3, N_JOINTS - 1, 9))
    # Entries of R - I: the diagonal falls as a joint bends (any axis), the z-rotation pair tells flexion from
    # extension.
    pattern = 1e-3 * np.array([-0.6, -0.5, 0.1, 0.5, -0.6, 0.1, -0.1, -0.1, -0.3])
    for j in range(1, N_JOINTS):
        parent = KINEMATIC_PARENTS[j]
        bump = 4 * weights[:, j] * weights[:, parent]
        palmar = 0.6 - 0.4 * normals[:, 1:2]
        shaped[:, :, j - 1] = (bump[:, None] * palmar * normals)[..., None] * pattern
    return shaped.reshape(N_VERTICES, 3, -1)


def _pose_space() -> tuple[np.ndarray, np.ndarray]:
    """Relaxed mean pose (45,) and an orthonormal pose basis (45, 45), common movements first."""
    mean = np.zeros((5, 3, 3))
    mean[:4, :, 2] = [[0.15, 0.35, 0.2], [0.25, 0.45, 0.25], [0.4, 0.45, 0.3], [0.35, 0.45, 0.3]]
    mean[4] = [[0.5, 0.1, -0.1], [0.0, -0.3, 0.1], [0.0, -0.3, 0.1]]
    fist = np.zeros((5, 3, 3))
    fist[:4, :, 2] = [1.0, 1.2, 0.7]
    spread = np.zeros((5, 3, 3))
    spread[:4, 0, 1] = [-0.4, -0.1, 0.4, 0.2]
    pinch = np.zeros((5, 3, 3))
    pinch[0, :, 2], pinch[4, :, 1] = [0.8, 0.6, 0.3], [-0.5, -0.3, -0.3]
    oppose = np.zeros((5, 3, 3))
    oppose[4, 0] = [0.8, -0.3, 0.2]
    point = fist.copy()
    point[0] = 0
    named = np.stack([m.reshape(45) for m in (fist, pinch, spread, oppose, point)], 1)
    basis, triangle = np.linalg.qr(np.concatenate([named, np.eye(45)], 1))
    return mean.reshape(45), (basis * np.where(np.diag(triangle[:, :45]) < 0, -1, 1)).T


def _mirror(right: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reflect all arrays in x = 0; a mirrored rotation is M R M, a mirrored axis-angle (x, -y, -z)."""
    flip = np.array([-1, 1, 1], np.float32)
    entry_sign = np.tile(np.outer(flip, flip).ravel(), N_JOINTS - 1)
    angle_sign = np.tile(-flip, 15)
    return right | {
        "v_template": right["v_template"] * flip,
        "f": np.ascontiguousarray(right["f"][:, ::-1]),
        "shapedirs": right["shapedirs"] * flip[:, None],
        "posedirs": right["posedirs"] * flip[:, None] * entry_sign,
        "hands_components": right["hands_components"] * angle_sign,
        "hands_mean": right["hands_mean"] * angle_sign,
    }
