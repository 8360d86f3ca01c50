"""Frozen, typed configuration: a tree of dataclasses. `parsing.py` reads and writes it, `presets.py` names runs."""

from jala_ray.config.generation import GenerationConfig
from jala_ray.config.model import BackboneConfig, EncoderConfig, LanguageSizes, ModelConfig, TextConfig, VisionSizes
from jala_ray.config.objectives import (
    OBJECTIVES,
    AlignConfig,
    EmaConfig,
    JalaConfig,
    LapaActionsConfig,
    LapaCodesConfig,
    LatentActionConfig,
    LayoutSpec,
    MaskingConfig,
    NextTokenConfig,
    ObjectiveConfig,
    ObjectiveTraits,
    PerceiverConfig,
    Variant,
)
from jala_ray.config.run import ClusterConfig, DataConfig, LogConfig, OptimConfig, RunConfig, StorageConfig, TrainConfig
from jala_ray.config.tokenizer import (
    TOKENIZER_FRAMES,
    AnyRun,
    TokenizerConfig,
    TokenizerRunConfig,
    TokenizerTrainConfig,
)

__all__ = [
    "OBJECTIVES",
    "TOKENIZER_FRAMES",
    "AlignConfig",
    "AnyRun",
    "BackboneConfig",
    "ClusterConfig",
    "DataConfig",
    "EmaConfig",
    "EncoderConfig",
    "GenerationConfig",
    "JalaConfig",
    "LanguageSizes",
    "LapaActionsConfig",
    "LapaCodesConfig",
    "LatentActionConfig",
    "LayoutSpec",
    "LogConfig",
    "MaskingConfig",
    "ModelConfig",
    "NextTokenConfig",
    "ObjectiveConfig",
    "ObjectiveTraits",
    "OptimConfig",
    "PerceiverConfig",
    "RunConfig",
    "StorageConfig",
    "TextConfig",
    "TokenizerConfig",
    "TokenizerRunConfig",
    "TokenizerTrainConfig",
    "TrainConfig",
    "Variant",
    "VisionSizes",
]
