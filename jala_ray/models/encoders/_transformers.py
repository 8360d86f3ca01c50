"""What the kinds share whose models are the transformers library's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from jala_ray.config.encoders import EncoderFacts, EncoderKind
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from jala_ray.config import EncoderConfig

REMEDY = "Give a hub name or folder in the transformers format; DINOv3's licence is accepted on the hub."


class TransformersKind(EncoderKind):
    """A kind whose architecture and weights are read by two classes of transformers."""

    unused: ClassVar[tuple[str, ...]] = ()
    """Parts that features don't pass through, such as pretraining heads."""

    def classes(self) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
        """Of the configuration and of the model."""
        raise NotImplementedError(f"{type(self).__name__} must implement classes")

    def random_config(self, config: EncoderConfig) -> PreTrainedConfig:
        """The architecture at `config.sizes`, which `check` has passed."""
        raise NotImplementedError(f"{type(self).__name__} must implement random_config")

    def used(self, model: Any) -> nn.Module:
        """The part of the whole model that gives the features."""
        return model

    def changed(self, config: EncoderConfig) -> dict[str, Any]:
        """Values of a pretrained architecture that this configuration changes."""
        return {}

    def check(self, config: EncoderConfig) -> None:
        sizes = config.sizes
        if config.pretrained is None and (sizes.hidden % sizes.heads or (sizes.hidden // sizes.heads) % 4):
            expected = f"a multiple of 4 x heads = {4 * sizes.heads} (rotary positions)"
            raise ConfigError("encoder.sizes.hidden", sizes.hidden, expected)

    def load(self, config: EncoderConfig, name: str) -> nn.Module:
        from jala_ray.models.pretrained import Pretrained

        files = Pretrained("encoder.pretrained", name, config.revision, REMEDY)
        config_class, model_class = self.classes()
        files.config_dict(config_class)
        return self.used(files.load(model_class, unused=self.unused, **self.changed(config)))

    def make(self, config: EncoderConfig, stored: dict[str, Any] | None) -> nn.Module:
        config_class, model_class = self.classes()
        made = self.random_config(config) if stored is None else config_class.from_dict(stored)
        return self.used(model_class(made))

    def facts(self, model: Any) -> EncoderFacts:
        return EncoderFacts(model.config.hidden_size, int(model.config.patch_size), model.config.to_dict())

    def features(self, model: Any, frames: Tensor) -> Tensor:
        from jala_ray.models.pixels import normalise_pixels

        rows, columns = (side // int(model.config.patch_size) for side in frames.shape[-2:])
        return model(normalise_pixels(frames)).last_hidden_state[:, -rows * columns :]


def shared_sizes(config: EncoderConfig) -> dict[str, Any]:
    """`config.sizes` under the names that transformers' vision models have in common."""
    sizes = config.sizes
    return {
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "patch_size": sizes.patch,
    }
