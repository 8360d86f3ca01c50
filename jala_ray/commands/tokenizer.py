"""Train the motion tokenizer on clips with hand poses, through Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import AvoidSubcommands, FlagConversionOff, Positional, arg

from jala_ray.commands.presetting import known, with_preset
from jala_ray.config import TokenizerRunConfig
from jala_ray.presets import TOKENIZER, TOKENIZER_PRESETS
from jala_ray.types import ConfigError

SHOWN = "tokenizer"
"""The preset whose settings `--help` shows where none is named."""


@dataclass(frozen=True)
class Arguments:
    """Train the motion tokenizer, which turns chunks of hand motion into tokens. A run folder that holds checkpoints is continued."""

    preset: Positional[Annotated[str, arg(metavar="PRESET", help=known(TOKENIZER_PRESETS))]]
    config: Annotated[AvoidSubcommands[FlagConversionOff[TokenizerRunConfig]], arg(name="")] = field(default=TOKENIZER)


def parse(words: Sequence[str], prog: str) -> Arguments:
    return with_preset(Arguments, words, prog, TOKENIZER_PRESETS, SHOWN, TokenizerRunConfig)


def run(arguments: Arguments) -> int:
    config = arguments.config
    if not config.manifests:
        raise ConfigError("manifests", config.manifests, "at least one manifest", "Pass --manifests PATH [PATH ...].")
    from jala_ray.reports.run.publish import publish_tokenizer_report, warnings_of
    from jala_ray.training import setup
    from jala_ray.training.launch import launch_tokenizer

    launch_tokenizer(config)
    folder, options = setup.run_folder(config), setup.storage_options(config)
    print(f"report: {publish_tokenizer_report(folder, config.manifests[0], options)}")
    for line in warnings_of(folder, options):
        print(line)
    return 0
