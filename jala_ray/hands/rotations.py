"""Rotations as axis-angle vectors, matrices and the continuous 6-D representation; slerp.

Every function takes any leading dimensions, keeps dtype and device, and has finite values and gradients for
all rotations: near 0 by series, near pi by way of the best-conditioned quaternion.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_SMALL_ANGLE_SQ = 1e-4
"""Squared angle (rad^2) below which series replace sin(x)/x and its kin; the next term is below 1e-14."""


def skew(v: Tensor) -> Tensor:
    """Cross-product matrices: v (..., 3) -> (..., 3, 3) with `skew(v) @ x = v x x`."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Rodrigues' formula: axis-angle (..., 3) in rad -> rotation matrices (..., 3, 3)."""
    sq = axis_angle.square().sum(-1)
    small = sq < _SMALL_ANGLE_SQ
    safe = torch.where(small, torch.ones_like(sq), sq)
    angle = safe.sqrt()
    a = torch.where(small, 1 - sq / 6 + sq.square() / 120, angle.sin() / angle)
    b = torch.where(small, 0.5 - sq / 24 + sq.square() / 720, (1 - angle.cos()) / safe)
    eye = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    # I + a K + b K^2 with K^2 = v v^T - |v|^2 I
    outer = axis_angle[..., :, None] * axis_angle[..., None, :]
    diagonal = (1 - b * sq)[..., None, None] * eye
    return diagonal + a[..., None, None] * skew(axis_angle) + b[..., None, None] * outer


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) -> unit quaternions (..., 4), real part first and never negative.

    4 q q^T has entries linear in the matrix; its row with the largest diagonal is q scaled by that component,
    so no rotation divides by a small number.
    """
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = matrix.flatten(-2).unbind(-1)
    rows = torch.stack(
        [
            torch.stack([1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01], -1),
            torch.stack([m21 - m12, 1 + m00 - m11 - m22, m10 + m01, m02 + m20], -1),
            torch.stack([m02 - m20, m10 + m01, 1 - m00 + m11 - m22, m12 + m21], -1),
            torch.stack([m10 - m01, m02 + m20, m12 + m21, 1 - m00 - m11 + m22], -1),
        ],
        -2,
    )
    best = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = rows.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    quaternion = F.normalize(row, dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) -> axis-angle (..., 3) in rad, angle in [0, pi]."""
    real, imag = matrix_to_quaternion(matrix).split([1, 3], -1)
    sq = imag.square().sum(-1, keepdim=True)
    small = sq < _SMALL_ANGLE_SQ
    norm = torch.where(small, torch.ones_like(sq), sq).sqrt()
    # angle / sin(angle / 2) = 2 atan2(|imag|, real) / |imag|
    ratio = torch.where(small, 2 + sq / 3 + 3 * sq.square() / 20, 2 * torch.atan2(norm, real) / norm)
    return ratio * imag


def matrix_to_6d(matrix: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) -> 6-D (..., 6): column 0, then column 1."""
    return torch.cat([matrix[..., 0], matrix[..., 1]], -1)


def rotation_6d_to_matrix(rotation_6d: Tensor) -> Tensor:
    """6-D (..., 6) -> rotation matrices (..., 3, 3) by Gram-Schmidt; the two columns must not be parallel or
    zero.
    """
    a, b = rotation_6d.split(3, -1)
    x = F.normalize(a, dim=-1)
    y = F.normalize(b - (x * b).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y, dim=-1)], -1)


def project_to_rotation(matrix: Tensor) -> Tensor:
    """The rotation nearest (Frobenius) to each matrix (..., 3, 3): orthogonal Procrustes, determinant +1."""
    u, _, vh = torch.linalg.svd(matrix)
    sign = torch.linalg.det(u @ vh).sign()
    u = torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], -1)
    return u @ vh


def slerp(m0: Tensor, m1: Tensor, t: Tensor | float) -> Tensor:
    """Constant-speed interpolation on the shortest arc from m0 to m1 (..., 3, 3); t (...) in [0, 1]."""
    step = matrix_to_axis_angle(m0.transpose(-1, -2) @ m1)
    fraction = torch.as_tensor(t, dtype=m0.dtype, device=m0.device)
    return m0 @ axis_angle_to_matrix(fraction[..., None] * step)
