"""gym-pusht: push a T onto its outline; 10 steps a second. Proprioception is the pusher's position; no expert is known."""

# pyright: reportMissingImports=false
from importlib.metadata import version

import numpy as np
from contract import Simulated
from gym_pusht.envs.pusht import PushTEnv

CAMERA = "observation.image"


class Simulator(Simulated):
    fps, max_steps = 10.0, 300
    cameras, state, action = (CAMERA,), {"observation.state": 2}, {"action": 2}
    low, high = np.zeros(2, np.float32), np.full(2, 512, np.float32)
    tasks = {"push-t": "push the T-shaped block onto the green outline"}

    def __init__(self, settings: dict) -> None:
        size = settings["size"]
        self.env = PushTEnv("pixels_agent_pos", observation_width=size, observation_height=size)

    def reset(self, task: str, seed: int, variant: str) -> None:
        self.env.reset(seed=seed)

    def states(self) -> dict:
        return {"observation.state": np.array(self.env.agent.position, np.float32)}

    def pictures(self) -> dict:
        return {CAMERA: np.asarray(self.env._render())}

    def step(self, action: np.ndarray) -> tuple[bool, ...]:
        return (bool(self.env.step(action.astype(np.float64))[4]["is_success"]),)

    def idle(self) -> np.ndarray:
        return np.array(self.env.agent.position, np.float32)

    def versions(self) -> dict:
        return {"gym-pusht": version("gym-pusht"), "pymunk": version("pymunk")}
