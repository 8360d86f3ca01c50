"""Skeleton and surface of the procedural right hand (see `asset`): a box-modelled disc round the bones.

The disc has 778 vertices, 1538 faces and one boundary ring of 16 (the only split of these counts on a
connected surface): a palm of rings, each finger a tube on the palm's far end, the thumb a tube on a hole in
its side.
"""

from __future__ import annotations

import numpy as np

from jala_ray.hands.mano import N_VERTICES

CHAINS = ("index", "middle", "pinky", "ring", "thumb")
_ACROSS = ("index", "middle", "ring", "pinky")
"""Fingers as they lie from the thumb's side (+z) to the other."""
_WRIST = np.array([0.092, 0.006, 0.006])
"""Rest position of the wrist joint, m; the origin lies near the knuckles, so transl is not the wrist."""
# Per finger, from the wrist: knuckle (m), direction, bone lengths to the tip (m), radii at its joints and tip
# (m).
_FINGERS: dict[str, tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]] = {
    "index": (
        (-0.088, 0.000, 0.023),
        (-1, 0, 0.09),
        (0.0398, 0.0224, 0.0196),
        (0.0100, 0.0086, 0.0078, 0.0066),
    ),
    "middle": (
        (-0.090, 0.002, 0.001),
        (-1, 0, 0.0),
        (0.0446, 0.0263, 0.0214),
        (0.0102, 0.0088, 0.0079, 0.0067),
    ),
    "ring": (
        (-0.083, 0.000, -0.020),
        (-1, 0, -0.10),
        (0.0414, 0.0257, 0.0213),
        (0.0097, 0.0083, 0.0074, 0.0063),
    ),
    "pinky": (
        (-0.073, -0.004, -0.039),
        (-1, 0, -0.23),
        (0.0327, 0.0181, 0.0197),
        (0.0086, 0.0073, 0.0065, 0.0056),
    ),
    "thumb": (
        (-0.024, -0.011, 0.025),
        (-0.75, -0.22, 0.62),
        (0.0390, 0.0316, 0.0275),
        (0.0130, 0.0110, 0.0098, 0.0078),
    ),
}
_PALM_RINGS, _RING, _WRIST_RING = 10, 20, 16
_TUBE_RINGS = {"index": 14, "middle": 14, "ring": 14, "pinky": 13, "thumb": 14}
_THUMB_ROW = 3
_WEB = 0.45
"""Where the web between fingers lies, as a share of the first phalanx."""


def _xyz(x: float, y: float, z: float) -> np.ndarray:
    return np.array([x, y, z], float)


def finger_of_joint() -> np.ndarray:
    """(16,) index into CHAINS of each joint's finger, -1 for the wrist."""
    return np.array([-1, *np.repeat(np.arange(5), 3)])


def rest_skeleton() -> np.ndarray:
    """Rest joints and tips (21, 3), m, in MANO_ORDER."""
    chains = {name: _chain(name) for name in CHAINS}
    tips = [chains[name][3] for name in ("thumb", *_ACROSS)]
    return np.stack([_WRIST, *(p for name in CHAINS for p in chains[name][:3]), *tips])


def _chain(name: str) -> np.ndarray:
    """Knuckle, two joints, tip (4, 3), m."""
    knuckle, direction, lengths, _ = _FINGERS[name]
    axis = np.array(direction) / np.linalg.norm(direction)
    return _WRIST + np.array(knuckle) + np.concatenate([[0.0], np.cumsum(lengths)])[:, None] * axis


def segment_distance(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (V,) of points (V, 3) to the segment ab and the nearest points on it (V, 3)."""
    t = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)[:, None]
    foot = a + t * (b - a)
    return np.linalg.norm(points - foot, axis=1), foot


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (V, 3), area-weighted over the faces around each vertex."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normals = np.zeros_like(vertices)
    for i in range(3):
        np.add.at(normals, faces[:, i], np.cross(b - a, c - a))
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def neighbour_mean(values: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Mean of `values` (V, D) over the vertices that share an edge with each vertex."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.unique(np.sort(edges, 1), axis=0)
    total = np.zeros_like(values)
    for a, b in ((0, 1), (1, 0)):
        np.add.at(total, edges[:, a], values[edges[:, b]])
    return total / np.bincount(edges.ravel(), minlength=len(values))[:, None]


def hand_mesh() -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Vertices (778, 3) m, outward faces (1538, 3), and the tip vertex of each finger, thumb to pinky."""
    builder = _MeshBuilder()
    palm = _build_palm(builder)
    tips = {"thumb": _build_tube(builder, "thumb", _thumb_root(palm), start_deg=315)}
    webs = [builder.add(_web_point(k + 1) - _xyz(0.002, 0, 0)) for k in range(3)]
    for k, name in enumerate(_ACROSS):
        last = palm[-1]
        left = last[19] if k == 0 else webs[k - 1]
        right = last[9] if k == 3 else webs[k]
        top, bottom = last[2 * k : 2 * k + 3], last[16 - 2 * k : 19 - 2 * k]
        tips[name] = _build_tube(builder, name, [*top, right, *bottom, left], start_deg=45)
    vertices, faces = np.array(builder.vertices), np.array(builder.faces)
    vertices = _wrap(vertices, faces, np.array(builder.loose))
    vertices, faces = _split_longest(vertices, faces, N_VERTICES)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    if np.einsum("fi,fi->", a - vertices.mean(0), np.cross(b, c)) < 0:
        faces = faces[:, ::-1].copy()
    return vertices, faces, tips


class _MeshBuilder:
    def __init__(self) -> None:
        self.vertices: list[np.ndarray] = []
        self.faces: list[tuple[int, int, int]] = []
        self.loose: list[bool] = []
        """Vertices that `_wrap` may move; wrist ring and finger tubes are placed exactly."""

    def add(self, position: np.ndarray, loose: bool = True) -> int:
        self.vertices.append(np.asarray(position, float))
        self.loose.append(loose)
        return len(self.vertices) - 1

    def quad(self, a: int, b: int, c: int, d: int) -> None:
        self.faces += [(a, b, c), (a, c, d)]

    def strip(self, lower: list[int], upper: list[int]) -> None:
        """Join two closed rings of the same direction, of any two lengths."""
        i = j = 0
        n, m = len(lower), len(upper)
        while i < n or j < m:
            if i < n and (j == m or (i + 1) * m <= (j + 1) * n):
                self.faces.append((lower[i % n], lower[(i + 1) % n], upper[j % m]))
                i += 1
            else:
                self.faces.append((lower[i % n], upper[(j + 1) % m], upper[j % m]))
                j += 1


def _web_point(boundary: int) -> np.ndarray:
    """Point on the web line at finger boundary 0 (thumb's side) to 4."""
    middle = [(1 - _WEB) * _chain(n)[0] + _WEB * _chain(n)[1] for n in _ACROSS]
    if 0 < boundary < 4:
        return (middle[boundary - 1] + middle[boundary]) / 2
    inner, outer = (middle[1], middle[0]) if boundary == 0 else (middle[2], middle[3])
    return outer + (outer - inner) * [0.1, 0.0, 0.48]


def _build_palm(builder: _MeshBuilder) -> list[list[int]]:
    """Wrist ring, then rings of 20 (9 above, 1 pinky side, 9 below, 1 thumb side) with the thumb's hole."""
    angles = np.deg2rad(45) + 2 * np.pi * np.arange(_WRIST_RING) / _WRIST_RING
    wrist = [builder.add(_WRIST + _xyz(0.016, 0.0175 * np.sin(t), 0.0265 * np.cos(t)), loose=False) for t in angles]
    fingers = [(1 - _WEB) * _chain(n)[0] + _WEB * _chain(n)[1] for n in _ACROSS]
    ends = [_web_point(c // 2) if c % 2 == 0 else fingers[c // 2] for c in range(9)]
    starts = [_WRIST + _xyz(0.008, 0, z) for z in np.linspace(0.022, -0.022, 9)]
    palm: list[list[int]] = []
    for r in range(_PALM_RINGS):
        s = r / (_PALM_RINGS - 1)
        columns = [(1 - s) * a + s * b for a, b in zip(starts, ends, strict=True)]
        half = np.array([0, (1 - s) * 0.015 + s * 0.008, 0])
        side = [0, 0, 0.003]
        points = (
            [c + half for c in columns] + [columns[8] - side] + [c - half for c in columns[::-1]] + [columns[0] + side]
        )
        hole = {19} if r == _THUMB_ROW + 1 else set()
        palm.append([-1 if i in hole else builder.add(p) for i, p in enumerate(points)])
    builder.strip(wrist, palm[0])
    for r in range(_PALM_RINGS - 1):
        for i in range(_RING):
            if r in (_THUMB_ROW, _THUMB_ROW + 1) and i in (18, 19):
                continue
            j = (i + 1) % _RING
            builder.quad(palm[r][i], palm[r][j], palm[r + 1][j], palm[r + 1][i])
    return palm


def _thumb_root(palm: list[list[int]]) -> list[int]:
    low, mid, high = (palm[_THUMB_ROW + i] for i in range(3))
    return [low[18], low[19], low[0], mid[0], high[0], high[19], high[18], mid[18]]


def _build_tube(builder: _MeshBuilder, name: str, root: list[int], start_deg: float) -> int:
    """Rings of 8 along a finger from its root loop to a round tip; returns the tip vertex."""
    chain, radii = _chain(name), _FINGERS[name][3]
    lengths = np.concatenate([[0.0], np.cumsum(_FINGERS[name][2])])
    axis = (chain[3] - chain[0]) / lengths[3]
    # The thumb's nail looks dorsally and towards the thumb's side, the fingers' straight up.
    nail = np.array([0.35, 0.75, 0.55]) if name == "thumb" else np.array([0.0, 1.0, 0.0])
    up = nail - (nail @ axis) * axis
    up /= np.linalg.norm(up)
    across = np.cross(axis, up) if name != "thumb" else -np.cross(axis, up)
    across = across if across @ ([1, 0, 0] if name == "thumb" else [0, 0, 1]) > 0 else -across
    count = _TUBE_RINGS[name]
    first = lengths[1] * (_WEB + 0.14 if name != "thumb" else 0.62)
    centre = lengths[3] - radii[3]
    stations = [(s, np.interp(s, lengths, radii)) for s in np.linspace(first, centre, count - 2)]
    stations += [(centre + radii[3] * np.sin(t), radii[3] * np.cos(t)) for t in np.deg2rad([36, 66])]
    previous = root
    for index, (s, radius) in enumerate(stations):
        ring = []
        for k in range(8):
            t = np.deg2rad(start_deg + 45 * k)
            outward = across * np.cos(t) + up * np.sin(t) * 0.93
            ring.append(builder.add(chain[0] + s * axis + radius * outward, loose=index < 2))
        for k in range(8):
            builder.quad(previous[k], previous[(k + 1) % 8], ring[(k + 1) % 8], ring[k])
        previous = ring
    tip = builder.add(chain[3], loose=False)
    builder.faces += [(previous[k], previous[(k + 1) % 8], tip) for k in range(8)]
    return tip


def _flesh(points: np.ndarray) -> np.ndarray:
    """Signed distance (V,) to the hand's body: rounded cones along the bones, smoothly joined."""
    cones = []
    for name in CHAINS:
        chain, radii = _chain(name), _FINGERS[name][3]
        cones += [(chain[i], chain[i + 1], radii[i], radii[i + 1]) for i in range(2)]
        if name != "thumb":
            carpal = _WRIST + np.array(_FINGERS[name][0]) * [0.18, 0.5, 0.45]
            cones.append((carpal, chain[0], 0.0135, 0.0105))
    thumb, wrist = _chain("thumb"), _WRIST
    cones.append((wrist + _xyz(-0.012, -0.004, 0.010), thumb[0] + 0.5 * (thumb[1] - thumb[0]), 0.015, 0.0135))
    cones.append((wrist + _xyz(-0.016, -0.006, -0.016), _chain("pinky")[0] + _xyz(0.008, -0.002, 0), 0.0135, 0.0095))
    cones += [(wrist + _xyz(0.03, 0, z), wrist + _xyz(0, 0, z), 0.0172, 0.0162) for z in (0.0105, -0.0105)]
    distances = []
    for a, b, ra, rb in cones:
        distance, foot = segment_distance(points, a, b)
        t = np.linalg.norm(foot - a, axis=1) / np.linalg.norm(b - a)
        distances.append(distance - (1 - t) * ra - t * rb)
    d = np.stack(distances)
    soft = 0.003
    low = d.min(0)
    return low - soft * np.log(np.exp(-(d - low) / soft).sum(0)) + 0.0015


def _wrap(vertices: np.ndarray, faces: np.ndarray, loose: np.ndarray) -> np.ndarray:
    """Relax loose vertices on the body: average with neighbours, then step back along the distance."""
    step = 1e-5 * np.eye(3)
    for _ in range(40):
        moved = vertices[loose] + 0.3 * (neighbour_mean(vertices, faces) - vertices)[loose]
        gradient = np.stack([_flesh(moved + h) - _flesh(moved - h) for h in step], 1) / 2e-5
        norm = np.maximum((gradient**2).sum(1, keepdims=True), 0.25)
        pull = np.clip(_flesh(moved), -0.004, 0.004)[:, None] * gradient / norm
        vertices = vertices.copy()
        vertices[loose] = moved - pull
    return vertices


def _split_longest(vertices: np.ndarray, faces: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the longest inner edges in the middle until there are `count` vertices."""
    points, triangles = list(vertices), [tuple(f) for f in faces.tolist()]
    while len(points) < count:
        sides: dict[tuple[int, int], list[int]] = {}
        for index, (a, b, c) in enumerate(triangles):
            for u, v in ((a, b), (b, c), (c, a)):
                sides.setdefault((min(u, v), max(u, v)), []).append(index)
        inner = [edge for edge, around in sides.items() if len(around) == 2]
        u, v = max(inner, key=lambda e: (round(float(np.linalg.norm(points[e[0]] - points[e[1]])), 9), e))
        points.append((points[u] + points[v]) / 2)
        middle = len(points) - 1
        for index in sides[(u, v)]:
            face = triangles[index]
            triangles[index] = tuple(middle if w == u else w for w in face)
            triangles.append(tuple(middle if w == v else w for w in face))
    return np.array(points), np.array(triangles)
