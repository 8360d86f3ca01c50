"""Pictures of a MuJoCo scene on a CPU: without antialiasing, shadows and reflections, which cost ten times the rest."""

# pyright: reportMissingImports=false
import mujoco
import numpy as np


class SceneCamera:
    """One camera of a model. Make it before the physics runs: the model's quality is set here."""

    def __init__(self, model: "mujoco.MjModel", size: int, hidden_groups: tuple[int, ...] = ()) -> None:
        model.vis.quality.offsamples, model.vis.quality.shadowsize = 0, 1
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        self.renderer, self.options = mujoco.Renderer(model, size, size), mujoco.MjvOption()
        for group in hidden_groups:
            self.options.geomgroup[group] = 0
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.renderer.scene.flags[flag] = 0

    def picture(self, data: "mujoco.MjData", name: str) -> np.ndarray:
        """(size, size, 3) uint8, upright."""
        self.renderer.update_scene(data, name, self.options)
        return self.renderer.render()

    def close(self) -> None:
        self.renderer.close()
