"""A small z-buffer renderer in numpy: triangle meshes over a textured table, with soft shadows.

Meshes are drawn at twice the image's size and averaged down (antialiasing); table and floor are looked up per
pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter

from jala_ray.data.synthetic.scene import Appearance
from jala_ray.types import Camera

_OVER = 2  # supersampling of the meshes
_NEAR = 0.05  # m; triangles nearer than this are not drawn
_FLOOR = -0.7  # m; height of the floor below the table top


@dataclass(frozen=True)
class Mesh:
    """World-frame triangles: vertices (V, 3) m, faces (F, 3), colours (V, 3) 0..1, `label` 1..255."""

    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray
    label: int


@dataclass(frozen=True)
class Image:
    rgb: np.ndarray
    """(H, W, 3) uint8."""
    labels: np.ndarray
    """(H, W) uint8: label of the nearest mesh at every pixel, 0 where the ground shows."""


class Renderer:
    """Draws frames of one clip."""

    def __init__(self, camera: Camera, look: Appearance) -> None:
        self.camera, self.look = camera, look
        y, x = np.mgrid[: camera.height, : camera.width].astype(np.float32) + 0.5
        rays = np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones_like(x)])
        self.rays = rays.reshape(3, -1).astype(np.float32)
        self.last_ground: tuple[np.ndarray, np.ndarray] | None = None

    def draw(self, world_to_camera: np.ndarray, meshes: Sequence[Mesh], time_s: float) -> Image:
        """One frame: `world_to_camera` (3, 4), `time_s` seconds of source time (for the light)."""
        look, (h, w) = self.look, (self.camera.height, self.camera.width)
        size, rate, phase = look.flicker
        light = look.tint * (1 + size * np.sin(2 * np.pi * rate * time_s + phase))
        if self.last_ground is None or not np.array_equal(self.last_ground[0], world_to_camera):
            self.last_ground = (world_to_camera, self._ground(world_to_camera))
        image = self.last_ground[1] * self._shadow(world_to_camera, meshes).reshape(-1, 1)
        at, colour, label = self._meshes(world_to_camera, meshes)
        v, u = np.divmod(at, w * _OVER)
        at = v // _OVER * w + u // _OVER
        count = np.bincount(at, minlength=h * w)
        touched = np.flatnonzero(count)
        total = np.stack([np.bincount(at, colour[:, k], h * w)[touched] for k in range(3)], -1)
        image[touched] = (total + image[touched] * (_OVER**2 - count[touched])[:, None]) / _OVER**2
        labels = np.zeros(h * w, np.uint8)
        labels[at] = label
        rgb = np.clip(image * (255 * light).astype(np.float32) + 0.5, 0, 255).astype(np.uint8)
        return Image(rgb.reshape(h, w, 3), labels.reshape(h, w))

    def _ground(self, world_to_camera: np.ndarray) -> np.ndarray:
        """Table top and floor seen by every pixel, (H W, 3) float32."""
        look = self.look
        rotation = world_to_camera[:, :3].astype(np.float32)
        eye = -rotation.T @ world_to_camera[:, 3].astype(np.float32)
        ahead = rotation.T @ self.rays
        ahead[:2] /= np.minimum(ahead[2], -1e-3)
        x, y = eye[:2, None] - eye[2] * ahead[:2]
        x0, x1, y0, y1 = look.table_edge
        outside = np.flatnonzero((x <= x0) | (x >= x1) | (y <= y0) | (y >= y1))
        image = _lookup(look.table, x, y, look.table_span)
        if len(outside):
            ox, oy = x[outside], y[outside]
            rim = ((ox > x0 - 0.012) & (ox < x1 + 0.012) & (oy > y0) & (oy < y1 + 0.02))[:, None]
            fx, fy = eye[:2, None] + (_FLOOR - eye[2]) * ahead[:2, outside]
            floor = _lookup(look.floor, fx, fy, 1.6)
            image[outside] = np.where(rim, np.float32(0.55) * image[outside], floor)
        # A little fall-off away from the lamp's spot gives the plain lab table depth.
        y -= np.float32(0.2)
        image *= (1.08 - 0.43 * np.minimum(x * x + y * y, 0.8))[:, None]
        return image

    def _shadow(self, world_to_camera: np.ndarray, meshes: Sequence[Mesh]) -> np.ndarray:
        """Brightness left on the ground (H, W): vertices and faces fall onto the table as blurred dots."""
        h, w = -(-self.camera.height // 2), -(-self.camera.width // 2)
        points = np.concatenate([p for m in meshes for p in (m.vertices, m.vertices[m.faces].mean(1))])
        light = self.look.light
        points = points - np.maximum(points[:, 2:], 0) * (light / light[2])
        pixels, depth = _project(self.camera, world_to_camera, points)
        u, v = np.floor(pixels / 2).astype(int).T
        keep = (depth > _NEAR) & (u >= 0) & (u < w) & (v >= 0) & (v < h)
        dark = np.zeros((h, w), np.float32)
        dark[v[keep], u[keep]] = 1.0
        dark = uniform_filter(np.minimum(uniform_filter(dark, 3) * 3, 1), 5)
        return (1 - 0.45 * dark).repeat(2, 0).repeat(2, 1)[: self.camera.height, : self.camera.width]

    def _meshes(self, world_to_camera: np.ndarray, meshes: Sequence[Mesh]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels that meshes cover at `_OVER` times the size: flat index (P,), colour (P, 3), label (P,)."""
        height, width = self.camera.height * _OVER, self.camera.width * _OVER
        first = np.cumsum([0, *(len(m.vertices) for m in meshes[:-1])])
        vertices = np.concatenate([m.vertices for m in meshes])
        faces = np.concatenate([m.faces + f for m, f in zip(meshes, first, strict=True)])
        labels = np.repeat(np.array([m.label for m in meshes], np.uint8), [len(m.faces) for m in meshes])
        shaded = np.concatenate([m.colours for m in meshes]) * self._light(vertices, faces)[:, None]
        points, depth = _project(self.camera, world_to_camera, vertices)
        points *= _OVER

        corner = points[faces]
        e1, e2 = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
        area = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
        # Faces are counter-clockwise from outside: with y down, those in front have a negative area.
        drawn = np.flatnonzero((area < -1e-6) & (depth[faces] > _NEAR).all(1))
        corner, area, faces = corner[drawn], area[drawn], faces[drawn]
        # Barycentric weights 1 and 2 of a pixel are affine: (gradient) . (pixel - corner 0).
        g1 = np.stack([e2[drawn, 1], -e2[drawn, 0]], -1) / area[:, None]
        g2 = np.stack([-e1[drawn, 1], e1[drawn, 0]], -1) / area[:, None]

        # Every row of every triangle, then the span of pixel centres that lies inside all three edges.
        top = np.clip(np.ceil(corner[..., 1].min(1) - 0.5), 0, height).astype(int)
        bottom = np.clip(np.ceil(corner[..., 1].max(1) - 0.5), 0, height).astype(int)
        face, row = _ranges(top, bottom)
        dy = row + 0.5 - corner[face, 0, 1]
        left, right = np.zeros(len(face)), np.full(len(face), float(width))
        x0 = corner[face, 0, 0] - 0.5
        for gradient, at_corner in ((g1, 0.0), (g2, 0.0), (-(g1 + g2), 1.0)):
            slope, level = gradient[face, 0], at_corner + gradient[face, 1] * dy
            with np.errstate(divide="ignore", invalid="ignore"):
                crossing = np.ceil(x0 - level / slope)
            np.maximum(left, crossing, out=left, where=slope > 0)
            np.minimum(right, crossing, out=right, where=slope < 0)
            right[(slope == 0) & (level < 0)] = 0
        # 1 / depth is affine on the screen, hence along a span.
        inverse = (1 / np.maximum(depth, _NEAR))[faces]
        rise1, rise2 = inverse[:, 1] - inverse[:, 0], inverse[:, 2] - inverse[:, 0]
        across = (rise1 * g1[:, 0] + rise2 * g2[:, 0])[face]
        start = inverse[face, 0] + (rise1 * g1[:, 1] + rise2 * g2[:, 1])[face] * dy - across * x0
        span, x = _ranges(left.astype(int), np.maximum(left, right).astype(int))
        nearness = start[span] + across[span] * x
        pixel = (row * width)[span] + x

        buffer = np.zeros(height * width)
        np.maximum.at(buffer, pixel, nearness)
        front = np.flatnonzero(nearness == buffer[pixel])
        winner = np.full(height * width, -1, np.int32)
        winner[pixel[front]] = front
        seen = np.flatnonzero(winner >= 0)
        span, x = span[winner[seen]], x[winner[seen]]
        face, dx, dy = face[span], x - x0[span], dy[span]
        w1 = (g1[face, 0] * dx + g1[face, 1] * dy)[:, None]
        w2 = (g2[face, 0] * dx + g2[face, 1] * dy)[:, None]
        tone = shaded[faces]
        tone[:, 1:] -= tone[:, :1]
        colour = tone[face, 0] + tone[face, 1] * w1 + tone[face, 2] * w2
        return seen, colour, labels[drawn[face]]

    def _light(self, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """Brightness of every vertex (V,): ambient plus a soft lamp (half-Lambert)."""
        corner = vertices[faces]
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        total = np.stack([np.bincount(faces.ravel(), np.repeat(normal[:, k], 3), len(vertices)) for k in range(3)], -1)
        cosine = total @ self.look.light / np.maximum(np.linalg.norm(total, axis=1), 1e-12)
        return self.look.ambient + (1.12 - self.look.ambient) * (0.5 + 0.5 * cosine) ** 1.3


def _project(camera: Camera, world_to_camera: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World points (V, 3) -> pixels (V, 2) and depth (V,); points behind the camera give finite nonsense."""
    local = points @ world_to_camera[:, :3].T + world_to_camera[:, 3]
    depth = local[:, 2]
    flat = local[:, :2] / np.maximum(depth, _NEAR)[:, None]
    return flat * [camera.fx, camera.fy] + [camera.cx, camera.cy], depth


def _lookup(texture: np.ndarray, x: np.ndarray, y: np.ndarray, span: float) -> np.ndarray:
    """Colours (P, 3) float32 of a repeated texture (its side a power of two) at plane points in metres."""
    size = len(texture)
    scale = np.float32(size / span)
    column, row = (x * scale).astype(np.int32) & (size - 1), (y * scale).astype(np.int32) & (size - 1)
    return texture.reshape(-1, 3).take(row * size + column, axis=0)


def _ranges(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(owner, value): every integer of every range [start, stop), with the range's number."""
    count = np.maximum(stop - start, 0)
    owner = np.repeat(np.arange(len(count)), count)
    first = np.cumsum(count) - count
    return owner, np.arange(len(owner)) - (first - start)[owner]
