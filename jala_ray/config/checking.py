"""Checks that configurations share. Each configuration checks itself; `RunConfig.check` asks all of them, before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from jala_ray.config.run import RunConfig


def check(config: RunConfig) -> None:
    """Refuse what cannot work, before anything starts. Raises `ConfigError`."""
    config.check()


def at_least(where: str, config: Any, smallest: Mapping[str, float]) -> None:
    """Refuse settings below their smallest values, and those that are not finite; `where` ends their dotted keys' beginnings."""
    for key, least in smallest.items():
        value = attrgetter(key)(config)
        if not math.isfinite(value) or value < least:
            raise ConfigError(f"{where}{key}", value, f"a number >= {least:g}")


def check_layer(layer: int, n_layers: int, where: str = "objective.align.layer") -> None:
    """Refuse a tap outside the backbone at hand."""
    if not 1 <= layer <= n_layers:
        remedy = "Blocks are counted from 1; the paper taps 19 of 28."
        raise ConfigError(where, layer, f"1..{n_layers} for this backbone", remedy)
