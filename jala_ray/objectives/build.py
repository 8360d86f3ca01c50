"""From an objective's configuration to the objective; the one place where kinds are listed."""

from __future__ import annotations

from jala_ray.config import JalaConfig, LapaActionsConfig, LapaCodesConfig, NextTokenConfig, ObjectiveConfig
from jala_ray.models.vla import VLA
from jala_ray.objectives.base import Objective
from jala_ray.objectives.jala import Jala
from jala_ray.objectives.lapa import LapaActions, LapaCodes
from jala_ray.objectives.next_token import NextToken

OBJECTIVES: dict[type, type] = {
    JalaConfig: Jala,
    NextTokenConfig: NextToken,
    LapaActionsConfig: LapaActions,
    LapaCodesConfig: LapaCodes,
}


def build_objective(config: ObjectiveConfig, vla: VLA, feature_dim: int, grid: tuple[int, int]) -> Objective:
    """`feature_dim` and `grid` (rows, columns) describe the frozen encoder's patch features."""
    return OBJECTIVES[type(config)](config, vla, feature_dim, grid)
