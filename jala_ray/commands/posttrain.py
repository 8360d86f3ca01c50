"""Post-train a pretrained model on robots, or go on where it was stopped; through Ray, or with --local."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import AvoidSubcommands, FlagConversionOff, Positional, arg

from jala_ray.commands import pretrain
from jala_ray.commands.presetting import known, with_preset
from jala_ray.config import RunConfig
from jala_ray.config.evaluators import lines
from jala_ray.presets import PRESETS

ACTING = {name: config for name, config in PRESETS.items() if config.objective.kind == "flow"}
SHOWN = "libero_spatial"
"""The preset whose settings `--help` shows where none is named."""


@dataclass(frozen=True)
class Arguments(pretrain.Arguments):
    """Teach a pretrained vision-language-action model the actions of robots: flow matching by a head that reads its predictive embeddings.

    --init names the pretrained checkpoint; with --objective.latents none it may be left out, and the language model begins as it was
    published. A run folder that holds checkpoints is continued.
    """

    preset: Positional[Annotated[str, arg(metavar="PRESET", help=known(ACTING))]]
    mfu: float = 0.4
    """For --dry-run: share of a card's peak FLOP/s that hours on one card assume."""
    config: Annotated[AvoidSubcommands[FlagConversionOff[RunConfig]], arg(name="")] = field(default=ACTING[SHOWN])


Arguments.__doc__ = f"{Arguments.__doc__}\n\nWhat --train.evaluate may name, each with a number of steps:\n\n{lines()}"


def parse(words: Sequence[str], prog: str) -> Arguments:
    return with_preset(Arguments, words, prog, ACTING, SHOWN, RunConfig)


def run(arguments: Arguments) -> int:
    status = pretrain.run(arguments)
    if arguments.dry_run:
        from jala_ray.training.cards import told
        from jala_ray.training.estimate import data_of
        from jala_ray.training.setup import storage_options

        config = arguments.config
        print(told(config, data_of(config, storage_options(config)), arguments.mfu))
    return status
