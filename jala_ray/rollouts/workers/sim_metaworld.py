"""Meta-World 3: 50 tasks of one arm at a table, each with a scripted expert; 80 steps a second.

Proprioception is the gripper's position and opening. Targets and objects vary with the seed, and are seen in pictures alone.
"""

# pyright: reportMissingImports=false
import warnings
from importlib.metadata import version

import mujoco
import numpy as np
from contract import SUCCESS, Simulated
from rendering import SceneCamera

warnings.simplefilter("ignore")  # gymnasium's, at every step
from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # noqa: E402
from metaworld.policies import ENV_POLICY_MAP  # noqa: E402

CAMERAS = {"observation.images.corner": "corner2", "observation.images.gripper": "gripperPOV"}
CORNER = (0.75, 0.075, 0.7)
"""m: nearer than Meta-World has it, so that small pictures show the objects."""
REACH = "Reach the object"
LIFT, HALF = "Grasp and lift it", "Bring it half the way"
STAGES = {
    "pick-place-wall-v3": (REACH, LIFT, HALF, SUCCESS),
    "shelf-place-v3": (REACH, LIFT, HALF, SUCCESS),
    "bin-picking-v3": (REACH, LIFT, HALF, SUCCESS),
    "push-v3": (REACH, HALF, SUCCESS),
    "drawer-open-v3": ("Reach the handle", "Open it by half", SUCCESS),
}
"""Of tasks whose own measures tell them apart; on others there is success alone."""
OPENINGS = ("Reach the handle", "Open it by half")
LIFT_M = 0.03
TABLE, OTHER_TEXTURE = "table_wood", "T_floor"
"""The unseen variant's table has the floor's texture, in another colour."""
OTHER_COLOUR = (0.55, 0.75, 1.0, 1.0)


class Simulator(Simulated):
    fps, max_steps = 80.0, 500
    state, action = {"observation.state": 4}, {"action": 4}
    low, high = -np.ones(4, np.float32), np.ones(4, np.float32)
    tasks = {name: name.removesuffix("-v3").replace("-", " ") for name in ALL_V3_ENVIRONMENTS}
    variants = ("seen", "unseen")
    experts = tuple(ENV_POLICY_MAP)

    def __init__(self, settings: dict) -> None:
        self.size = settings["size"]
        self.cameras = tuple(settings["cameras"] or ("observation.images.corner",))
        unknown = set(self.cameras) - CAMERAS.keys()
        if unknown:
            raise ValueError(f"cameras {sorted(unknown)}; there are {sorted(CAMERAS)}")
        self.task, self.variant, self.camera = "", "", None

    def subtasks(self, task: str) -> tuple[str, ...]:
        return STAGES.get(task, (SUCCESS,))

    def reset(self, task: str, seed: int, variant: str) -> None:
        if task != self.task:
            self._made(task)
        if (task, variant) != (self.task, self.variant):
            self._dressed(variant)
        self.task, self.variant = task, variant
        mujoco.mj_resetData(self.env.model, self.env.data)  # or the solver begins from where the last rollout ended
        self.env.seed(seed)
        self.seen, _ = self.env.reset()
        self.policy = ENV_POLICY_MAP[task]()
        self.first = None

    def _made(self, task: str) -> None:
        """Build the task's scene."""
        self.env = ALL_V3_ENVIRONMENTS[task]()
        self.env._partially_observable = False  # the expert is told the goal; policies get `states`
        self.env.__dict__.pop("sawyer_observation_space", None)
        self.env._set_task_called, self.env._freeze_rand_vec, self.env.seeded_rand_vec = True, False, True
        model = self.env.model
        model.cam_pos[model.camera("corner2").id] = CORNER
        material = model.material(TABLE).id
        self.dress = {"seen": (model.mat_texid[material].copy(), model.mat_rgba[material].copy())}
        textures = np.where(self.dress["seen"][0] >= 0, model.texture(OTHER_TEXTURE).id, -1)
        self.dress["unseen"] = (textures, np.array(OTHER_COLOUR))

    def _dressed(self, variant: str) -> None:
        """The next picture has a camera of its own: one that is there keeps the textures it began with."""
        if self.camera is not None:
            self.camera.close()
        model, self.camera = self.env.model, None
        material = model.material(TABLE).id
        model.mat_texid[material], model.mat_rgba[material] = self.dress[variant]

    def states(self) -> dict:
        return {"observation.state": self.env._get_curr_obs_combined_no_goal()[:4].astype(np.float32)}

    def pictures(self) -> dict:
        if self.camera is None:
            self.camera = SceneCamera(self.env.model, self.size)
        found = {}
        for name in self.cameras:
            shown = self.camera.picture(self.env.data, CAMERAS[name])
            found[name] = shown[::-1, ::-1] if CAMERAS[name] == "corner2" else shown
        return found

    def step(self, action: np.ndarray) -> tuple[bool, ...]:
        self.seen, _, _, _, info = self.env.step(action)
        height, far = self.env._get_pos_objects()[2], info["obj_to_target"]
        if self.first is None:
            self.first = (height, far)
        reached = {
            SUCCESS: info["success"] > 0,
            LIFT: height > self.first[0] + LIFT_M,
            **dict.fromkeys((REACH, OPENINGS[0]), info["near_object"] > 0),
            **dict.fromkeys((HALF, OPENINGS[1]), far < self.first[1] / 2),
        }
        return tuple(bool(reached[name]) for name in self.subtasks(self.task))

    def expert(self) -> np.ndarray:
        return self.policy.get_action(self.seen)

    def versions(self) -> dict:
        return {"metaworld": version("metaworld"), "mujoco": mujoco.__version__}
