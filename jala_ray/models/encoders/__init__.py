"""Kinds of frozen encoders, a file each. A file that is added is a kind that is added; `config.encoders.EncoderKind` says what it declares.

The encoder itself is `models.frame_encoder.FrameEncoder`; importing this package loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jala_ray.config import EncoderConfig

MOVED = ("FrameEncoder", "encoder_key", "RANDOM_SEED", "PAIR_FRAMES")
"""Names that this had as a module, and that are those of `models.frame_encoder` now."""


def random_config(config: EncoderConfig) -> Any:
    """The transformers configuration of a random encoder at `config.sizes`, of a kind that has one. Raises `ConfigError`."""
    from jala_ray.config.encoders import ENCODERS

    kind: Any = ENCODERS.find(config.kind)()
    kind.check(config)
    return kind.random_config(config)


def __getattr__(name: str) -> Any:
    if name in MOVED:
        from jala_ray.models import frame_encoder

        return getattr(frame_encoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
