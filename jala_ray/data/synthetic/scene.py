"""What a clip looks like: camera path, objects, surfaces, light, skin. Drawn from a seed, lab or wild.

World frame as in `motion`: x right, y away from the person, z up, table top at z = 0; metres, radians.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from jala_ray.data.synthetic.grammar import TARGETS, Target
from jala_ray.data.synthetic.motion import Prop
from jala_ray.types import Camera, Domain

SLOTS: dict[Target, tuple[float, float]] = {
    "near_left": (-0.15, 0.15),
    "near_right": (0.15, 0.15),
    "centre": (0.0, 0.22),
    "far_left": (-0.16, 0.33),
    "far_right": (0.16, 0.33),
}
"""Places on the table, metres; a clip's objects lie within 2 cm of them."""

_COLOURS: dict[Domain, dict[str, tuple[int, int, int]]] = {
    "lab": {"red": (205, 52, 45), "blue": (45, 95, 190), "green": (60, 150, 75), "yellow": (228, 188, 60)},
    "wild": {
        "orange": (226, 122, 38),
        "purple": (120, 70, 158),
        "teal": (32, 138, 140),
        "pink": (224, 120, 160),
        "white": (226, 224, 216),
        "red": (182, 40, 48),
    },
}
# (radius, height) up a surface of revolution, as shares of the prop's radius and height; boxes have none.
_PROFILES: dict[str, tuple[tuple[float, float], ...]] = {
    "cup": ((0.75, 0), (0.85, 0.08), (1, 1), (0.88, 1), (0.7, 0.12), (0, 0.12)),
    "ball": tuple((float(np.sin(a)), float(0.5 - 0.5 * np.cos(a))) for a in np.linspace(0.02, np.pi - 0.02, 12)),
    "bottle": ((0.95, 0), (1, 0.05), (1, 0.55), (0.45, 0.78), (0.4, 0.98), (0, 1)),
    "can": ((0.95, 0), (1, 0.05), (1, 0.95), (0.92, 1), (0.85, 0.96), (0, 0.96)),
    "bowl": ((0.5, 0), (0.8, 0.35), (1, 1), (0.93, 1), (0.7, 0.4), (0.4, 0.15), (0, 0.12)),
}
_SIZES: dict[str, tuple[float, float]] = {
    "cup": (0.036, 0.085),
    "box": (0.036, 0.06),
    "ball": (0.034, 0.068),
    "bottle": (0.032, 0.13),
    "can": (0.032, 0.1),
    "bowl": (0.055, 0.05),
}
_KINDS: dict[Domain, tuple[str, ...]] = {
    "lab": ("cup", "box", "ball"),
    "wild": ("bottle", "can", "bowl", "box", "cup"),
}
_SKIN: dict[Domain, tuple[tuple[int, int, int], ...]] = {
    "lab": ((224, 172, 140), (210, 158, 124)),
    "wild": ((240, 198, 172), (206, 150, 112), (168, 112, 78), (124, 80, 56), (86, 56, 42)),
}


@dataclass(frozen=True)
class Solid:
    """A mesh about its base centre: vertices (V, 3) m, faces (F, 3), RGB per vertex (V, 3) 0..1."""

    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray


@dataclass(frozen=True)
class SceneObject:
    name: str
    slot: Target
    prop: Prop
    yaw: float
    solid: Solid


@dataclass(frozen=True)
class Appearance:
    """Surfaces and light of one clip. Textures (size, size, 3) float32 0..1 repeat every `span` metres."""

    table: np.ndarray
    floor: np.ndarray
    table_span: float
    table_edge: tuple[float, float, float, float]
    """x min, x max, y min, y max of the table top, metres."""
    skin: np.ndarray
    sleeve: np.ndarray
    light: np.ndarray
    """(3,) unit vector towards the lamp, world frame."""
    ambient: float
    flicker: tuple[float, float, float]
    """Size, rate (Hz) and phase (rad) of slow brightness changes; size 0 in the lab."""
    tint: np.ndarray


def draw_objects(domain: Domain, target: Target, rng: np.random.Generator) -> tuple[SceneObject, ...]:
    """The target first, then one to three other objects: different slots, each name once."""
    others: list[Target] = [t for t in TARGETS if t != target]
    extra = int(rng.integers(1, 3) if domain == "lab" else rng.integers(2, 4))
    slots: list[Target] = [target, *(others[int(i)] for i in rng.permutation(len(others))[:extra])]
    names = [(c, k) for c in _COLOURS[domain] for k in _KINDS[domain]]
    chosen = rng.choice(len(names), len(slots), replace=False)
    return tuple(
        _draw_object(colour, kind, _COLOURS[domain][colour], slot, rng)
        for (colour, kind), slot in zip((names[i] for i in chosen), slots, strict=True)
    )


def draw_camera(width: int, height: int) -> Camera:
    """Pinhole camera of 64 degrees across."""
    focal = width / (2 * np.tan(np.radians(64) / 2))
    return Camera(float(focal), float(focal), width / 2, height / 2, width, height)


def draw_camera_path(
    domain: Domain, time_s: np.ndarray, rng: np.random.Generator, wild_size: float = 1.0
) -> np.ndarray:
    """World -> camera, (T, 3, 4). Lab: a tripod, or a head nearly still; wild: a head that moves and turns.

    `time_s` (T,) is source time: how fast a head moves does not depend on how the clip is later slowed. `wild_size` scales how far the
    wild one moves.
    """
    wild = domain == "wild"
    still = not wild and rng.random() < 0.5
    eye = np.array([0.0, -0.2, 0.55]) + rng.uniform(-1, 1, 3) * ([0.06, 0.03, 0.05] if wild else [0.02, 0.01, 0.02])
    aim = np.array([0.0, 0.19, 0.03]) + rng.uniform(-1, 1, 3) * ([0.03, 0.02, 0.0] if wild else [0.01, 0.01, 0.0])
    roll = rng.uniform(-0.1, 0.1) if wild else 0.0
    size = 0.0 if still else wild_size if wild else 0.08
    eyes = eye + size * _drift(time_s, rng) * [0.05, 0.03, 0.03]
    aims = aim + size * _drift(time_s, rng) * [0.045, 0.03, 0.01]
    rolls = roll + size * 0.08 * _drift(time_s, rng)[:, 0]
    ahead = _unit(aims - eyes)
    right = _unit(np.cross(ahead, [0.0, 0.0, 1.0]))
    down = np.cross(ahead, right)
    cos, sin = np.cos(rolls)[:, None], np.sin(rolls)[:, None]
    rotation = np.stack([cos * right + sin * down, cos * down - sin * right, ahead], 1)
    return np.concatenate([rotation, -rotation @ eyes[..., None]], -1)


def _drift(time_s: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Smooth motion of about unit size, (T, 3): a ramp and two slow waves."""
    rate, phase = rng.uniform(0.15, 0.7, (2, 3)), rng.uniform(0, 2 * np.pi, (2, 3))
    waves = np.sin(2 * np.pi * time_s[:, None, None] * rate + phase).sum(1)
    return 0.45 * waves + rng.uniform(-0.3, 0.3, 3) * time_s[:, None].clip(max=3)


def _draw_object(
    colour: str, kind: str, rgb: tuple[int, int, int], slot: Target, rng: np.random.Generator
) -> SceneObject:
    scale = rng.uniform(0.92, 1.12)
    radius, height = (float(v * scale) for v in _SIZES[kind])
    position = np.array([*SLOTS[slot], 0.0])
    position[:2] += rng.uniform(-0.02, 0.02, 2)
    tone = np.clip(np.array(rgb) / 255 * rng.uniform(0.92, 1.06), 0, 1)
    solid = _box(radius, height, tone) if kind == "box" else _revolve(_PROFILES[kind], radius, height, tone)
    return SceneObject(f"{colour} {kind}", slot, Prop(position, radius, height), rng.uniform(-0.5, 0.5), solid)


def _revolve(profile: tuple[tuple[float, float], ...], radius: float, height: float, rgb: np.ndarray) -> Solid:
    around = 28
    angle = np.linspace(0, 2 * np.pi, around, endpoint=False)
    # Rings are doubled, so that a sharp edge keeps a sharp shade; a light stripe shows turning.
    rings = [profile[0], *(p for p in profile[1:-1] for _ in (0, 1)), profile[-1]]
    vertices = np.concatenate(
        [
            np.stack([r * radius * np.cos(angle), r * radius * np.sin(angle), 0 * angle + h * height], -1)
            for r, h in rings
        ]
    )
    i = np.arange(around)
    j = (i + 1) % around
    faces = []
    for k in range(0, len(rings) - 1, 2):
        a, b = k * around, (k + 1) * around
        faces += [np.stack([a + i, a + j, b + j], -1), np.stack([a + i, b + j, b + i], -1)]
    colours = np.tile(rgb, (len(vertices), 1))
    stripe = np.tile((i % (around // 2)) < 4, len(rings))
    colours[stripe] = np.clip(0.55 * colours[stripe] + 0.45, 0, 1)
    return Solid(vertices, np.concatenate(faces), colours)


def _box(radius: float, height: float, rgb: np.ndarray) -> Solid:
    corners = np.array([[x, y, z] for z in (0, 1) for y in (-1, 1) for x in (-1, 1)], float)
    corners *= [radius, radius * 0.85, height]
    sides = [(0, 1, 5, 4), (1, 3, 7, 5), (3, 2, 6, 7), (2, 0, 4, 6), (4, 5, 7, 6)]
    vertices, faces, colours = [], [], []
    for n, (a, b, c, d) in enumerate(sides):  # own vertices for every side: sharp edges
        vertices += [corners[a], corners[b], corners[c], corners[d]]
        faces += [(4 * n, 4 * n + 1, 4 * n + 2), (4 * n, 4 * n + 2, 4 * n + 3)]
        colours += [0.82 * rgb if n == 0 else rgb] * 4
    return Solid(np.array(vertices), np.array(faces), np.array(colours))


def draw_look(domain: Domain, rng: np.random.Generator, plain: bool = True) -> Appearance:
    """Even light on a plain table (lab), or any table, floor, skin, sleeve and light (wild; without `plain`, lab under a steady light)."""
    plain &= domain == "lab"
    skins = _SKIN["lab" if plain else "wild"]
    skin = np.array(skins[rng.integers(len(skins))]) / 255 * rng.uniform(0.95, 1.05)
    if plain:
        grey = rng.uniform(0.72, 0.8)
        return Appearance(
            table=np.full((8, 8, 3), grey * np.array([1.0, 0.99, 0.97]), np.float32),
            floor=np.full((8, 8, 3), (grey - 0.22) * np.array([0.97, 1.0, 1.03]), np.float32),
            table_span=1.0,
            table_edge=(-0.6, 0.6, -0.3, 0.62),
            skin=skin,
            sleeve=np.array([0.25, 0.28, 0.34]),
            light=_unit(np.array([-0.3, -0.15, 1.0])),
            ambient=0.5,
            flicker=(0.0, 0.0, 0.0),
            tint=np.ones(3),
        )
    look = Appearance(
        table=_texture(("wood", "cloth", "tiles", "stone")[rng.integers(4)], rng),
        floor=_texture(("wood", "tiles", "stone", "clutter")[rng.integers(4)], rng) * np.float32(0.75),
        table_span=float(rng.uniform(0.5, 0.9)),
        table_edge=(-rng.uniform(0.45, 0.8), rng.uniform(0.45, 0.8), -0.3, rng.uniform(0.5, 0.8)),
        skin=skin,
        sleeve=rng.uniform(0.08, 0.85, 3),
        light=_unit(np.array([rng.uniform(-0.8, 0.8), rng.uniform(-0.6, 0.6), 1.0])),
        ambient=float(rng.uniform(0.35, 0.5)),
        flicker=(float(rng.uniform(0.05, 0.16)), float(rng.uniform(0.1, 0.4)), float(rng.uniform(0, 6.3))),
        tint=1 + rng.uniform(-0.07, 0.07, 3),
    )
    return look if domain == "wild" else replace(look, flicker=(0.0, 0.0, 0.0))


def _texture(kind: str, rng: np.random.Generator, size: int = 256) -> np.ndarray:
    """A seamless texture (size, size, 3) float32, 0..1; `size` a power of two."""
    base = {
        "wood": (0.55, 0.38, 0.24),
        "cloth": (0.5, 0.5, 0.55),
        "tiles": (0.66, 0.64, 0.6),
        "stone": (0.45, 0.45, 0.46),
    }
    rgb = np.array(base.get(kind, (0.5, 0.45, 0.42))) * rng.uniform(0.75, 1.25) * rng.uniform(0.88, 1.12, 3)

    def noise(sy: float, sx: float) -> np.ndarray:
        field = gaussian_filter(rng.standard_normal((size, size)), (sy, sx), mode="wrap")
        return field / field.std()

    v, u = np.mgrid[:size, :size] / size
    if kind == "wood":
        grain = np.sin(2 * np.pi * (6 * v + 0.25 * noise(6, 40))) * 0.08 + 0.05 * noise(0.8, 25)
        planks = np.where((v * 3) % 1 < 0.03, -0.16, 0.05 * np.floor(v * 3 - 1))
        shade = grain + planks
    elif kind == "cloth":
        checks = 0.13 * (((u * 6) % 1 < 0.5).astype(float) + ((v * 6) % 1 < 0.5) - 1)
        shade = checks + 0.03 * noise(1, 1)
    elif kind == "tiles":
        gap = ((u * 4) % 1 < 0.05) | ((v * 4) % 1 < 0.05)
        tone = np.kron(rng.uniform(-0.06, 0.06, (4, 4)), np.ones((size // 4, size // 4)))
        shade = np.where(gap, -0.2, tone) + 0.015 * noise(1, 1)
    elif kind == "stone":
        shade = 0.025 * noise(1.5, 1.5) + 0.06 * noise(9, 9)
    else:  # clutter: overlapping flat shapes in many colours
        image = np.tile(rgb, (size, size, 1))
        for _ in range(28):
            y, x = rng.integers(0, size, 2)
            h, w = rng.integers(size // 12, size // 4, 2)
            rows, columns = (np.arange(y, y + h) % size)[:, None], np.arange(x, x + w) % size
            image[rows, columns] = rng.uniform(0.15, 0.85, 3)
        return gaussian_filter(image, (0.7, 0.7, 0), mode="wrap").astype(np.float32)
    return np.clip(rgb + shade[..., None], 0.03, 0.97).astype(np.float32)


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)
