"""A simulator of seven joints, of which two bring a dot onto another that only the picture shows: the guide's `pick_world.py`."""

import numpy as np
from contract import Simulated

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
JOINTS, SPEED, NEAR = 7, 0.1, 0.1


def drawn(size: int, places: dict) -> np.ndarray:
    """(size, size, 3) uint8: squares of some colours at places (x, y) of -1 to 1, on grey."""
    image = np.full((size, size, 3), 60, np.uint8)
    for colour, place in places.items():
        column, row = ((np.asarray(place) + 1) / 2 * (size - 1)).round().astype(int)
        image[max(0, row - 3) : row + 4, max(0, column - 3) : column + 4] = colour
    return image


def seen(size: int, joints: np.ndarray, cube: np.ndarray) -> dict:
    """Pictures by camera: both dots, and what lies around the hand."""
    green, red = (0, 255, 0), (255, 0, 0)
    return {FRONT: drawn(size, {green: cube, red: joints[:2]}), WRIST: drawn(size, {green: cube - joints[:2]})}


def commanded(joints: np.ndarray, cube: np.ndarray) -> np.ndarray:
    """(JOINTS,) the expert's move of a step."""
    moved = np.zeros(JOINTS, np.float32)
    moved[:2] = np.clip(cube - joints[:2], -SPEED, SPEED)
    moved[2:] = 0.1 * (cube[0] - joints[2:])
    return moved


class Simulator(Simulated):
    fps, max_steps = 10.0, 20
    cameras, state, action = (FRONT, WRIST), {"observation.state": JOINTS}, {"action": JOINTS}
    low, high = -np.ones(JOINTS, np.float32), np.ones(JOINTS, np.float32)
    tasks = {"pick": "Pick the cube."}
    experts = ("pick",)

    def __init__(self, settings: dict) -> None:
        self.size = settings["size"]

    def reset(self, task: str, seed: int, variant: str) -> None:
        self.cube = np.random.default_rng(seed).uniform(-0.8, 0.8, 2)
        self.joints = np.zeros(JOINTS)

    def states(self) -> dict:
        return {"observation.state": self.joints.astype(np.float32)}

    def pictures(self) -> dict:
        return seen(self.size, self.joints, self.cube)

    def step(self, action: np.ndarray) -> tuple[bool, ...]:
        self.joints = np.clip(self.joints + action, -1, 1)
        return (float(np.linalg.norm(self.joints[:2] - self.cube)) < NEAR,)

    def expert(self) -> np.ndarray:
        return commanded(self.joints, self.cube)
