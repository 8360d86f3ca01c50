"""What lerobot does with a batch before and after: no more than a batch axis and the device."""
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

from lerobot.processor import make_default_pre_post_processors

from lerobot_policy_jala.configuration_jala import JalaConfig


def make_jala_pre_post_processors(config: JalaConfig, dataset_stats: Any = None) -> tuple[Any, Any]:
    return make_default_pre_post_processors(config, dataset_stats)
