"""Commands that take a PRESET and its settings: `jala pretrain tiny --train.steps 300`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from jala_ray.config import RunConfig, TokenizerRunConfig
from jala_ray.parsing import arguments
from jala_ray.presets import named_or_read
from jala_ray.types import ConfigError

T = TypeVar("T")
AnyRun = TypeVar("AnyRun", RunConfig, TokenizerRunConfig)


def with_preset(
    kind: type[T], words: Sequence[str], prog: str, presets: Mapping[str, AnyRun], shown: str, run: type[AnyRun]
) -> T:
    """The arguments of such a command: a dataclass with `preset`, a positional, and `config`.

    The words begin with a preset's name or the address of a config.json, whose settings are the defaults of `config`. `--help`
    without one shows those of the preset `shown`. Raises `ConfigError` for an unknown preset or option.
    """
    asked = [word for word in words if word in ("-h", "--help")]
    if not asked and (not words or words[0].startswith("-")):
        raise ConfigError("preset", words[0] if words else None, f"first one of {', '.join(presets)}, or a config.json")
    first = shown if not words or words[0].startswith("-") else words[0]
    return arguments(kind, words or asked, prog, default_of(kind, first, named_or_read(first, presets, run)))


def default_of(kind: type[Any], preset: str, config: Any) -> Any:
    """What the words are read over; a required argument is still missing."""
    import tyro

    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    return kind(**dict.fromkeys(required, tyro.MISSING) | {"preset": preset, "config": config})


def known(presets: Mapping[str, object]) -> str:
    """Help of PRESET."""
    return f"One of {', '.join(presets)}, or the config.json of an earlier run. What follows are its settings."
