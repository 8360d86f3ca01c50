"""The MANO hand: linear blend skinning in plain torch (Romero et al., 'Embodied Hands', 2017; method.md 1).

The only interface to a hand model is an npz of validated arrays (`load_asset`): the procedural hand that
ships with the package, or the user's official MANO turned into npz once by `python -m jala_ray.hands
convert-mano`.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from jala_ray.storage import local_path
from jala_ray.types import HAND_NAMES, Hand, UserError

N_VERTICES, N_FACES, N_JOINTS, N_BETAS = 778, 1538, 16, 10
N_POSE_FEATURES = 9 * (N_JOINTS - 1)
ASSETS = Path(__file__).parent / "assets"
TIP_IDS = (744, 320, 443, 554, 671)
"""Fingertip vertices of MANO's mesh: thumb, index, middle, ring, pinky (smplx's table)."""
KINEMATIC_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)

ASSET_SHAPES: dict[str, tuple[int, ...]] = {
    "v_template": (N_VERTICES, 3),
    "f": (N_FACES, 3),
    "J_regressor": (N_JOINTS, N_VERTICES),
    "weights": (N_VERTICES, N_JOINTS),
    "shapedirs": (N_VERTICES, 3, N_BETAS),
    "posedirs": (N_VERTICES, 3, N_POSE_FEATURES),
    "kintree_table": (2, N_JOINTS),
    "hands_components": (45, 45),
    "hands_mean": (45,),
    "tip_ids": (5,),
    "side": (),
}
"""Fields of a hand npz, named and shaped as in MANO's pickles; `tip_ids` and `side` (0 left, 1 right) are
ours.
"""
_INTEGER_FIELDS = ("f", "kintree_table", "tip_ids", "side")


class HandMesh(NamedTuple):
    """Posed hand: `joints` (..., 21, 3) in MANO_ORDER and `vertices` (..., 778, 3), metres."""

    joints: Tensor
    vertices: Tensor


def validate_asset(arrays: dict[str, np.ndarray], where: str) -> None:
    """Check fields, shapes, dtypes and indices of a hand asset. Raises UserError naming the field."""
    for name, shape in ASSET_SHAPES.items():
        if name not in arrays:
            raise UserError(f"{where}: {name}", "missing", f"an array of shape {shape}", _CONVERT)
        value = arrays[name]
        if value.shape != shape:
            raise UserError(f"{where}: {name}", value.shape, f"shape {shape}", _CONVERT)
        if value.dtype.kind != ("i" if name in _INTEGER_FIELDS else "f"):
            kind = "integers" if name in _INTEGER_FIELDS else "floating point numbers"
            raise UserError(f"{where}: {name}", str(value.dtype), kind, _CONVERT)
        if not np.isfinite(value).all():
            raise UserError(f"{where}: {name}", "NaN or infinity", "finite numbers", _CONVERT)
    for name in ("f", "tip_ids"):
        low, high = int(arrays[name].min()), int(arrays[name].max())
        if low < 0 or high >= N_VERTICES:
            raise UserError(f"{where}: {name}", (low, high), f"vertex ids in [0, {N_VERTICES})", _CONVERT)
    parents = tuple(int(p) for p in arrays["kintree_table"][0, 1:])
    if parents != KINEMATIC_PARENTS[1:]:
        raise UserError(f"{where}: kintree_table", parents, f"MANO's tree {KINEMATIC_PARENTS[1:]}", _CONVERT)


_CONVERT = "Make it with `python -m jala_ray.hands convert-mano IN.pkl OUT.npz`."


def load_asset(path: str | Path | None, side: Hand) -> dict[str, np.ndarray]:
    """Read and validate a hand npz.

    path: None for the shipped hand, an npz file, or a folder with `hand_left.npz` and `hand_right.npz`.
    Raises UserError when the file is absent, unreadable, lacks a field, has a wrong shape or is the other
    side.
    """
    file = ASSETS if path is None else Path(local_path(path))
    file = file / f"hand_{HAND_NAMES[side]}.npz" if path is None or file.is_dir() else file
    if not file.is_file():
        raise UserError("hand asset", str(file), "an existing npz file", _CONVERT)
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise UserError("hand asset", str(file), f"a readable npz without pickles ({error})", _CONVERT) from error
    validate_asset(arrays, str(file))
    if int(arrays["side"]) != int(side):
        remedy = "Pass the file of the other hand."
        raise UserError(f"{file}: side", int(arrays["side"]), f"{int(side)} ({HAND_NAMES[side]})", remedy)
    return arrays


class ManoHand(nn.Module):
    """One hand's skinned model. Buffers only: nothing here is trained.

    Runs in the dtype of its buffers (float32 as loaded; `.double()` for float64); all inputs must have that
    dtype. All leading dimensions broadcast, so one beta (10,) serves a whole sequence.
    """

    v_template: Tensor
    faces: Tensor
    weights: Tensor
    shapedirs: Tensor
    posedirs: Tensor
    j_template: Tensor
    j_shapedirs: Tensor
    tip_ids: Tensor
    hands_mean: Tensor

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        """arrays: a validated asset (ASSET_SHAPES)."""
        super().__init__()
        validate_asset(arrays, "hand asset")
        self.side = Hand(int(arrays["side"]))
        real = {k: torch.from_numpy(np.asarray(v, np.float64)) for k, v in arrays.items()}
        # The joint regressor is linear, so it is applied to template and shape directions once, in float64.
        regressor = real["J_regressor"]
        buffers = {
            "v_template": real["v_template"],
            "weights": real["weights"],
            "shapedirs": real["shapedirs"],
            "posedirs": real["posedirs"],
            "j_template": regressor @ real["v_template"],
            "j_shapedirs": torch.einsum("jv,vcs->jcs", regressor, real["shapedirs"]),
            "hands_mean": real["hands_mean"],
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.float())
        for name, key in (("faces", "f"), ("tip_ids", "tip_ids")):
            self.register_buffer(name, torch.from_numpy(arrays[key].astype(np.int64)))

    @classmethod
    def load(cls, path: str | Path | None, side: Hand) -> ManoHand:
        """Load one side; see `load_asset` for `path` (None = the shipped hand) and errors."""
        return cls(load_asset(path, side))

    def forward(self, theta: Tensor, rot: Tensor, wrist: Tensor, beta: Tensor) -> HandMesh:
        """Pose the whole mesh.

        theta (..., 15, 3, 3): finger rotations, absolute (flat-hand mean); rot (..., 3, 3): wrist rotation;
        wrist (..., 3): position of the wrist *joint*, metres (MANO's transl = wrist - J0(beta)); beta (...,
        10). Raises UserError on a wrong shape.
        """
        self._check(theta, rot, wrist, beta)
        rest = self.rest_joints(beta)
        rotations, posed = self._chain(theta, rot, wrist, rest)
        vertices = self._skin(slice(None), theta, beta, rest, rotations, posed)
        joints = torch.cat([posed, vertices[..., self.tip_ids, :]], -2)
        return HandMesh(joints, vertices)

    def joints(self, theta: Tensor, rot: Tensor, wrist: Tensor, beta: Tensor) -> Tensor:
        """Joints (..., 21, 3) alone, arguments as in `forward`; skins only the five fingertip vertices."""
        self._check(theta, rot, wrist, beta)
        rest = self.rest_joints(beta)
        rotations, posed = self._chain(theta, rot, wrist, rest)
        tips = self._skin(self.tip_ids, theta, beta, rest, rotations, posed)
        return torch.cat([posed, tips], -2)

    def rest_joints(self, beta: Tensor) -> Tensor:
        """J(beta): beta (..., 10) -> the 16 joints of the unposed hand (..., 16, 3), metres."""
        return self.j_template + torch.einsum("jcs,...s->...jc", self.j_shapedirs, beta)

    def _chain(self, theta: Tensor, rot: Tensor, wrist: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Global rotations (..., 16, 3, 3) and positions (..., 16, 3); the five fingers move in parallel."""
        fingers = theta.unflatten(-3, (5, 3))
        bones = rest[..., 1:, :].unflatten(-2, (5, 3))
        offsets = torch.cat([bones[..., :1, :] - rest[..., None, :1, :], bones[..., 1:, :] - bones[..., :-1, :]], -2)
        rotation, position = rot[..., None, :, :], wrist[..., None, :]
        rotations, positions = [], []
        for level in range(3):
            position = position + (rotation @ offsets[..., level, :, None]).squeeze(-1)
            rotation = rotation @ fingers[..., level, :, :]
            rotations.append(rotation)
            positions.append(position)
        lead = torch.broadcast_shapes(theta.shape[:-3], rot.shape[:-2], wrist.shape[:-1], rest.shape[:-2])
        root_r = rot[..., None, :, :].expand(*lead, 1, 3, 3)
        root_p = wrist[..., None, :].expand(*lead, 1, 3)
        finger_r = torch.stack([r.expand(*lead, 5, 3, 3) for r in rotations], -3).flatten(-4, -3)
        finger_p = torch.stack([p.expand(*lead, 5, 3) for p in positions], -2).flatten(-3, -2)
        return torch.cat([root_r, finger_r], -3), torch.cat([root_p, finger_p], -2)

    def _skin(
        self, ids: Tensor | slice, theta: Tensor, beta: Tensor, rest: Tensor, rotations: Tensor, posed: Tensor
    ) -> Tensor:
        """Vertices `ids` (..., V, 3): both blend shapes, then the joints' motions mixed by weight."""
        eye = torch.eye(3, dtype=theta.dtype, device=theta.device)
        pose = (theta - eye).flatten(-3)
        shaped = self.v_template[ids] + torch.einsum("vcs,...s->...vc", self.shapedirs[ids], beta)
        shaped = shaped + torch.einsum("vcp,...p->...vc", self.posedirs[ids], pose)
        shift = posed - (rotations @ rest[..., None]).squeeze(-1)
        motion = torch.cat([rotations, shift[..., None]], -1).flatten(-2)
        mixed = (self.weights[ids] @ motion).unflatten(-1, (3, 4))
        return (mixed[..., :3] @ shaped[..., None]).squeeze(-1) + mixed[..., 3]

    def _check(self, theta: Tensor, rot: Tensor, wrist: Tensor, beta: Tensor) -> None:
        expected = {"theta": (15, 3, 3), "rot": (3, 3), "wrist": (3,), "beta": (N_BETAS,)}
        for (name, shape), value in zip(expected.items(), (theta, rot, wrist, beta), strict=True):
            if tuple(value.shape[-len(shape) :]) != shape:
                raise UserError(name, tuple(value.shape), f"shape (..., {', '.join(map(str, shape))})")
            if value.dtype != self.v_template.dtype:
                remedy = "Convert the input, or the hand with .double() or .float()."
                raise UserError(name, value.dtype, f"the hand's dtype {self.v_template.dtype}", remedy)


def load_pair(path: str | Path | None = None) -> tuple[ManoHand, ManoHand]:
    """(left, right), indexable by Hand; `path`: None for the shipped hands, or a folder of both files."""
    if path is not None and not Path(local_path(path)).is_dir():
        raise UserError("hand assets", str(path), "a folder with hand_left.npz and hand_right.npz", _CONVERT)
    return ManoHand.load(path, Hand.LEFT), ManoHand.load(path, Hand.RIGHT)
