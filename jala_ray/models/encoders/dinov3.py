"""DINOv3: features of each frame alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jala_ray.config.encoders import ENCODERS
from jala_ray.models.encoders._transformers import TransformersKind, shared_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from jala_ray.config import EncoderConfig


@ENCODERS.register("dinov3", place=1)
class Dinov3(TransformersKind):
    """DINOv3, features of each frame"""

    def classes(self) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
        from transformers import DINOv3ViTConfig, DINOv3ViTModel

        return DINOv3ViTConfig, DINOv3ViTModel

    def random_config(self, config: EncoderConfig) -> PreTrainedConfig:
        from transformers import DINOv3ViTConfig

        return DINOv3ViTConfig(
            **shared_sizes(config),
            image_size=config.image_size,
            intermediate_size=config.sizes.mlp,
            num_register_tokens=4,
        )
