"""What a model learns by, a file per objective. A file that is added is an objective that is added; `base.ObjectiveConfig` says what it
declares. Its implementation lies in `jala_ray/objectives/`, and is loaded when a model is built."""

from jala_ray.config.objectives._acting import ActionHeadConfig, AugmentConfig
from jala_ray.config.objectives._aligning import AlignConfig
from jala_ray.config.objectives._latent_actions import LatentActionConfig
from jala_ray.config.objectives._teacher import TeacherConfig
from jala_ray.config.objectives.base import (
    OBJECTIVES,
    LayoutSpec,
    MaskingConfig,
    ObjectiveConfig,
    PerceiverConfig,
    Variant,
)
from jala_ray.config.objectives.flow import FlowConfig
from jala_ray.config.objectives.grounded import GroundedConfig
from jala_ray.config.objectives.jala import EmaConfig, JalaConfig
from jala_ray.config.objectives.lapa_actions import LapaActionsConfig
from jala_ray.config.objectives.lapa_codes import LapaCodesConfig
from jala_ray.config.objectives.next_token import NextTokenConfig
from jala_ray.config.objectives.posterior import PosteriorConfig

ObjectiveTraits = ObjectiveConfig
"""Its name when each kind was listed."""

__all__ = [
    "OBJECTIVES",
    "ActionHeadConfig",
    "AlignConfig",
    "AugmentConfig",
    "EmaConfig",
    "FlowConfig",
    "GroundedConfig",
    "JalaConfig",
    "LapaActionsConfig",
    "LapaCodesConfig",
    "LatentActionConfig",
    "LayoutSpec",
    "MaskingConfig",
    "NextTokenConfig",
    "ObjectiveConfig",
    "ObjectiveTraits",
    "PerceiverConfig",
    "PosteriorConfig",
    "TeacherConfig",
    "Variant",
]
