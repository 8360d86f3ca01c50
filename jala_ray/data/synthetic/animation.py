"""One clip of the world: exact poses, camera and objects as numpy, and its frames as meshes to draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from jala_ray.data.synthetic.grammar import Composition
from jala_ray.data.synthetic.motion import HandFrame, HandMotion, PropMotion, animate, draw_start
from jala_ray.data.synthetic.render import Image, Mesh, Renderer
from jala_ray.data.synthetic.scene import (
    Appearance,
    SceneObject,
    Solid,
    draw_camera,
    draw_camera_path,
    draw_look,
    draw_objects,
)
from jala_ray.hands.camera import first_camera_from_extrinsics, project, transform_points
from jala_ray.hands.mano import ManoHand, load_pair
from jala_ray.types import Camera, Domain, Hand

HAND_LABELS, ARM_LABELS = {Hand.LEFT: 101, Hand.RIGHT: 102}, {Hand.LEFT: 201, Hand.RIGHT: 202}
"""Mask labels of the hands up to the wrist, and of the arms behind them; objects are 1, 2, ..."""
_AROUND = 14


@dataclass(frozen=True)
class Animation:
    """Everything of one clip but its text. Poses are in the world frame; `time_s` (T,) is source time."""

    time_s: np.ndarray
    domain: Domain
    objects: tuple[SceneObject, ...]
    """The target first."""
    look_seed: np.random.SeedSequence
    camera: Camera
    world_to_camera: np.ndarray
    """(T, 3, 4)."""
    hands: dict[Hand, HandMotion]
    beta: np.ndarray
    """(10,), both hands' shape."""
    prop: PropMotion
    plain: bool = True
    """Lab has its plain table."""

    @property
    def extrinsics(self) -> np.ndarray:
        """(T, 3, 4): first camera -> camera of frame t."""
        return first_camera_from_extrinsics(self.world_to_camera)

    def first_camera_pose(self, side: Hand) -> HandMotion:
        """A hand's motion in the first frame's camera frame."""
        motion, first = self.hands[side], self.world_to_camera[0]
        turn = Rotation.from_matrix(first[:, :3])
        rot = (turn * Rotation.from_rotvec(motion.rot)).as_rotvec()
        return HandMotion(motion.theta, rot, transform_points(first, motion.wrist[None])[0])

    def joints(self, side: Hand) -> np.ndarray:
        """(T, 21, 3) in the world frame."""
        return _pose(self.hands[side], self.beta, side, vertices=False)

    def joints_in_view(self, side: Hand) -> np.ndarray:
        """(T,) share of the 21 joints that project into the image."""
        pixels = project(self.camera, transform_points(self.world_to_camera, self.joints(side)))
        inside = (pixels >= 0) & (pixels < [self.camera.width, self.camera.height])
        return inside.all(-1).mean(-1)

    def render(self, frames: Sequence[int] | None = None) -> Iterator[Image]:
        """The frames asked for; all of them, in order, by default."""
        look = draw_look(self.domain, np.random.default_rng(self.look_seed), self.plain)
        renderer = Renderer(self.camera, look)
        vertices = {s: _pose(self.hands[s], self.beta, s, vertices=True) for s in self.hands}
        for t in range(len(self.time_s)) if frames is None else frames:
            meshes = [self._object(i, t) for i in range(len(self.objects))]
            for side in self.hands:
                meshes += self._hand(side, vertices[side][t], t, look)
            yield renderer.draw(self.world_to_camera[t], meshes, float(self.time_s[t]))

    def _object(self, index: int, t: int) -> Mesh:
        item, solid = self.objects[index], self.objects[index].solid
        position, yaw, squash = item.prop.position, item.yaw, 1.0
        if index == 0:
            position, yaw, squash = self.prop.position[t], item.yaw + self.prop.yaw[t], self.prop.squash[t]
        cos, sin = np.cos(yaw), np.sin(yaw)
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
        points = (solid.vertices * [squash, squash, 1.0]) @ turn.T + position
        return Mesh(points, solid.faces, solid.colours, index + 1)

    def _hand(self, side: Hand, vertices: np.ndarray, t: int, look: Appearance) -> list[Mesh]:
        skin = _skin_tone(side) * look.skin
        hand = Mesh(vertices, _faces(side), skin, HAND_LABELS[side])
        wrist = self.hands[side].wrist[t]
        back = -Rotation.from_rotvec(self.hands[side].rot[t]).apply(hand_frame(side).forward)
        elbow = np.array([0.3 if side is Hand.RIGHT else -0.3, -0.34, 0.02])
        forearm = (elbow - wrist) / np.linalg.norm(elbow - wrist)
        along = back + 1.6 * forearm
        along /= np.linalg.norm(along)
        bare = np.stack([wrist - 0.012 * back, wrist + 0.02 * along, wrist + 0.05 * along, wrist + 0.09 * along])
        arm = _tube(bare, np.array([0.019, 0.025, 0.028, 0.03]), look.skin)
        reach = np.concatenate([[0.0, 0.002], np.linspace(0.03, 0.55, 18)])
        cuff = wrist + 0.075 * along + reach[:, None] * forearm
        sleeve = _tube(cuff, np.concatenate([[0.028], 0.036 + 0.017 * reach[1:] / 0.4]), look.sleeve)
        return [hand, *(Mesh(m.vertices, m.faces, m.colours, ARM_LABELS[side]) for m in (arm, sleeve))]


@dataclass(frozen=True)
class Staging:
    """What the clips of a world have in common."""

    size: tuple[int, int]
    """(width, height) px."""
    at_object_share: float
    """How probably a hand begins at its object."""
    wild_camera: float = 1.0
    """Factor on the motion of a wild clip's camera."""


def make_animation(
    composition: Composition,
    domain: Domain,
    time_s: np.ndarray,
    time_scale: float,
    staging: Staging,
    seed: np.random.SeedSequence,
) -> Animation:
    """Poses, objects and camera of one clip at source times `time_s` (T,), seconds."""
    *seeds, look_seed = seed.spawn(6)
    object_rng, start_rng, motion_rng, camera_rng, shape_rng = (np.random.default_rng(s) for s in seeds)
    objects = draw_objects(domain, composition.target, object_rng)
    start = draw_start(start_rng, staging.at_object_share)
    frames = {side: hand_frame(side) for side in Hand}
    hands, prop = animate(composition, objects[0].prop, start, frames, time_s / time_scale, motion_rng)
    beta = shape_rng.normal(0, 0.6, 10)
    path = draw_camera_path(domain, time_s, camera_rng, staging.wild_camera)
    return Animation(time_s, domain, objects, look_seed, draw_camera(*staging.size), path, hands, beta, prop)


@cache
def _models() -> tuple[ManoHand, ManoHand]:
    return load_pair()


@cache
def hand_frame(side: Hand) -> HandFrame:
    """Anatomical frame of the shipped hand's rest pose."""
    eye = torch.eye(3)
    joints = _models()[side].joints(eye.expand(15, 3, 3), eye, torch.zeros(3), torch.zeros(10))
    return HandFrame.from_joints(joints.double().numpy(), side)


@cache
def _faces(side: Hand) -> np.ndarray:
    """Faces wound counter-clockwise from outside, whichever way the asset winds them."""
    model = _models()[side]
    faces, v = model.faces.numpy(), model.v_template.double().numpy()
    a, b, c = (v[faces[:, i]] for i in range(3))
    volume = (a * np.cross(b, c)).sum()
    return faces if volume > 0 else faces[:, ::-1].copy()


@cache
def _skin_tone(side: Hand) -> np.ndarray:
    """(778, 3) multipliers: redder, lighter fingertips and palm, so that the hand's turn can be seen."""
    model, frame = _models()[side], hand_frame(side)
    v = model.v_template.double().numpy()
    tips = v[model.tip_ids.numpy()]
    near_tip = np.exp(-((np.linalg.norm(v[:, None] - tips, axis=-1).min(1) / 0.012) ** 2))
    height = (v - v.mean(0)) @ frame.palm
    palm = 1 / (1 + np.exp(-height / 0.003))
    return 1 + near_tip[:, None] * [0.08, -0.08, -0.06] + palm[:, None] * [0.06, 0.0, -0.02] - 0.03


def _pose(motion: HandMotion, beta: np.ndarray, side: Hand, vertices: bool) -> np.ndarray:
    """Joints (T, 21, 3) or vertices (T, 778, 3) of a motion, in its frame, float64."""
    shape = motion.theta.shape
    theta = Rotation.from_rotvec(motion.theta.reshape(-1, 3)).as_matrix().reshape(*shape[:2], 3, 3)
    rot = Rotation.from_rotvec(motion.rot).as_matrix()
    inputs = [torch.from_numpy(a).float() for a in (theta, rot, motion.wrist, beta)]
    model = _models()[side]
    with torch.no_grad():
        out = model(*inputs).vertices if vertices else model.joints(*inputs)
    return out.double().numpy()


def _tube(centres: np.ndarray, radii: np.ndarray, rgb: np.ndarray) -> Solid:
    """A closed tube through centres (R, 3), metres."""
    axis = centres[-1] - centres[0]
    side = np.cross(axis, [0.0, 0.0, 1.0])
    side /= max(np.linalg.norm(side), 1e-9)
    up = np.cross(side, axis) / np.linalg.norm(axis)
    angle = np.linspace(0, 2 * np.pi, _AROUND, endpoint=False)[:, None]
    ring = np.cos(angle) * side + np.sin(angle) * up
    vertices = (centres[:, None] + radii[:, None, None] * ring).reshape(-1, 3)
    i, j = np.arange(_AROUND), (np.arange(_AROUND) + 1) % _AROUND
    faces = []
    for k in range(len(centres) - 1):
        a, b = k * _AROUND, (k + 1) * _AROUND
        faces += [np.stack([a + i, b + j, a + j], -1), np.stack([a + i, b + i, b + j], -1)]
    ends = len(vertices)
    vertices = np.concatenate([vertices, centres[[0, -1]]])
    last = (len(centres) - 1) * _AROUND
    faces += [np.stack([0 * i + ends, i, j], -1), np.stack([0 * i + ends + 1, last + j, last + i], -1)]
    return Solid(vertices, np.concatenate(faces), np.tile(rgb, (len(vertices), 1)))
