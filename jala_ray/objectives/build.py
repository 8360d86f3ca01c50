"""From an objective's configuration to the objective."""

from __future__ import annotations

import importlib

from jala_ray.config import ObjectiveConfig
from jala_ray.models.vla import VLA
from jala_ray.objectives.base import Objective


def build_objective(config: ObjectiveConfig, vla: VLA, feature_dim: int, grid: tuple[int, int]) -> Objective:
    """`feature_dim` and `grid` (rows, columns) describe the frozen encoder's patch features."""
    module, _, name = config.implementation.partition(":")
    return getattr(importlib.import_module(module), name)(config, vla, feature_dim, grid)
