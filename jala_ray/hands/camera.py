"""Pinhole cameras and rigid transforms. Camera axes: x right, y down, z forward; metres and pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jala_ray.types import Camera, UserError

if TYPE_CHECKING:
    from torch import Tensor

ArrayOrTensor = TypeVar("ArrayOrTensor", np.ndarray, "Tensor")


def project(camera: Camera, points: ArrayOrTensor) -> ArrayOrTensor:
    """Camera-frame points (..., 3), m -> pixels (..., 2), x then y; NaN where z <= 0."""
    xp: Any = np
    if not isinstance(points, np.ndarray):
        import torch as xp
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    depth = xp.where(z > 0, z, xp.nan)  # pyright: ignore
    return xp.stack([camera.fx * x / depth + camera.cx, camera.fy * y / depth + camera.cy], -1)  # pyright: ignore


def scale_camera(camera: Camera, width: int, height: int) -> Camera:
    """The camera of the same image resized to width x height px (aspect may change: VITRA's does)."""
    if width <= 0 or height <= 0:
        raise UserError("camera size", (width, height), "positive width and height in px")
    sx, sy = width / camera.width, height / camera.height
    return Camera(camera.fx * sx, camera.fy * sy, camera.cx * sx, camera.cy * sy, width, height)


ASSUMED_FOV_DEG = 60.0
"""Field of view of the longer side of a picture whose camera nobody knows: between a phone's main lens and a laptop's."""


def camera_of_view(width: int, height: int, fov_deg: float = ASSUMED_FOV_DEG) -> Camera:
    """A camera whose longer side sees `fov_deg` degrees, with square pixels and its axis through the middle.

    Raises UserError for an angle outside 0..180 and for a size that is not positive.
    """
    if not 0 < fov_deg < 180:
        raise UserError("fov", fov_deg, "degrees between 0 and 180")
    if width <= 0 or height <= 0:
        raise UserError("camera size", (width, height), "positive width and height in px")
    focal = max(width, height) / 2 / float(np.tan(np.radians(fov_deg) / 2))
    return Camera(focal, focal, width / 2, height / 2, width, height)


def intrinsic_matrix(camera: Camera) -> np.ndarray:
    """K (3, 3) float64, px."""
    return np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1.0]])


def camera_from_matrix(matrix: np.ndarray, width: int, height: int) -> Camera:
    """Intrinsic matrix K (3, 3) of a width x height image -> Camera. Raises UserError on another form."""
    k = np.asarray(matrix, float)
    if k.shape != (3, 3):
        raise UserError("intrinsics", k.shape, "shape (3, 3)")
    if (
        not np.isfinite(k).all()
        or k[0, 0] <= 0
        or k[1, 1] <= 0
        or not np.allclose([k[0, 1], k[1, 0], *k[2]], [0, 0, 0, 0, 1], atol=1e-6)
    ):
        raise UserError("intrinsics", k.tolist(), "[[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with positive fx, fy")
    fx, fy, cx, cy = (float(k[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return Camera(fx, fy, cx, cy, width, height)


def _as_3x4(extrinsics: np.ndarray) -> np.ndarray:
    e = np.asarray(extrinsics, float)
    if e.ndim < 2 or e.shape[-1] != 4 or e.shape[-2] not in (3, 4):
        raise UserError("extrinsics", e.shape, "shape (..., 3, 4) or (..., 4, 4)")
    r = e[..., :3, :3]
    if not np.isfinite(e).all() or not np.allclose(r @ np.swapaxes(r, -1, -2), np.eye(3), atol=1e-3):
        raise UserError("extrinsics", "not rigid", "finite matrices [R | t] with R a rotation")
    return e[..., :3, :]


def invert_rigid(transform: np.ndarray) -> np.ndarray:
    """Inverse of [R | t], (..., 3 or 4, 4) -> (..., 3, 4)."""
    e = _as_3x4(transform)
    rotation = np.swapaxes(e[..., :3], -1, -2)
    return np.concatenate([rotation, -rotation @ e[..., 3:]], -1)


def compose_rigid(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """[R | t] that applies `inner`, then `outer`; both (..., 3 or 4, 4) -> (..., 3, 4)."""
    a, b = _as_3x4(outer), _as_3x4(inner)
    return np.concatenate([a[..., :3] @ b[..., :3], a[..., :3] @ b[..., 3:] + a[..., 3:]], -1)


def transform_points(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply [R | t] (..., 3, 4) to points: one point (..., 3) a transform, or (..., J, 3) many for each."""
    e = _as_3x4(transform)
    many = points.ndim == e.ndim
    rotated = np.einsum("...ij,...kj->...ki" if many else "...ij,...j->...i", e[..., :3], points)
    return rotated + (e[..., None, :, 3] if many else e[..., 3])


def first_camera_from_extrinsics(world_to_camera: np.ndarray) -> np.ndarray:
    """World -> camera of frame t (T, 3 or 4, 4) => first camera -> camera of frame t (T, 3, 4).

    E_t E_0^-1, what `Clip.extrinsics` holds (method.md 1: motion is in the clip's first camera).
    """
    e = _as_3x4(world_to_camera)
    if e.ndim != 3 or len(e) == 0:
        raise UserError("extrinsics", e.shape, "shape (T, 3 or 4, 4) with T >= 1")
    return compose_rigid(e, invert_rigid(e[0])[None])


def pose_to_first_camera(
    first_to_camera: np.ndarray, rot: np.ndarray, wrist: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Wrist rotations (T, 3, 3) and positions (T, 3) from each frame's camera to the first camera.

    Undoes camera motion; first_to_camera (T, 3, 4) is `Clip.extrinsics`. Any other rigid
    change of frame works alike, given as target -> source.
    """
    back = invert_rigid(first_to_camera)
    return back[..., :3] @ rot, transform_points(back, wrist)
