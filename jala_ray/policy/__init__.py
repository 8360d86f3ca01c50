"""From a checkpoint to a robot's actions: one class for servers, simulators, the open-loop report and a notebook (method.md 10)."""

from jala_ray.policy.checkpoint import CheckpointPolicy, load_policy

__all__ = ["CheckpointPolicy", "load_policy"]
