"""From an objective's configuration to the objective."""

from __future__ import annotations

from jala_ray.config import ObjectiveConfig
from jala_ray.models.vla import VLA
from jala_ray.objectives.base import Objective
from jala_ray.registry import loaded


def build_objective(config: ObjectiveConfig, vla: VLA, feature_dim: int, grid: tuple[int, int]) -> Objective:
    """`feature_dim` and `grid` (rows, columns) describe the frozen encoder's patch features."""
    return loaded(config.implementation)(config, vla, feature_dim, grid)
