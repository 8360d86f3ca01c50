"""V-JEPA 2: features of a pair of frames, read as one clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jala_ray.config.encoders import ENCODERS
from jala_ray.models.encoders._transformers import TransformersKind, shared_sizes

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from jala_ray.config import EncoderConfig

TUBELET = 2
"""Frames of a clip; V-JEPA 2 folds two into one."""


@ENCODERS.register("vjepa2", place=2)
class Vjepa2(TransformersKind):
    """V-JEPA 2, features of pairs of frames"""

    pairs = True
    unused = ("predictor",)

    def classes(self) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
        from transformers import VJEPA2Config, VJEPA2Model

        return VJEPA2Config, VJEPA2Model

    def random_config(self, config: EncoderConfig) -> PreTrainedConfig:
        from transformers import VJEPA2Config

        return VJEPA2Config(
            **shared_sizes(config),
            crop_size=config.image_size,
            frames_per_clip=TUBELET,
            tubelet_size=TUBELET,
            mlp_ratio=config.sizes.mlp / config.sizes.hidden,
            # The predictor is built and thrown away.
            pred_num_hidden_layers=1,
            pred_hidden_size=24,
            pred_num_attention_heads=1,
        )

    def used(self, model: Any) -> nn.Module:
        return model.encoder

    def changed(self, config: EncoderConfig) -> dict[str, Any]:
        """Rotary positions come from the size in the configuration, not from the pixels."""
        return {"crop_size": config.image_size}
