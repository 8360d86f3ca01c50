"""Pretrain a model, or go on where it was stopped; through Ray, or with --local."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from tyro.conf import AvoidSubcommands, FlagConversionOff, Positional, arg

from jala_ray.commands.presetting import known, with_preset
from jala_ray.config import RunConfig
from jala_ray.config.evaluators import lines
from jala_ray.presets import BASE, PRESETS

SHOWN = "jala"
"""The preset whose settings `--help` shows where none is named."""


@dataclass(frozen=True)
class Arguments:
    """Pretrain a vision-language-action model. A run folder that holds checkpoints is continued.

    Without `ray job submit`, it joins the Ray of RAY_ADDRESS or starts one on this machine.
    """

    preset: Positional[Annotated[str, arg(metavar="PRESET", help=known(PRESETS))]]
    local: bool = False
    """In this process, on its GPU where there is one, without Ray."""
    dry_run: bool = False
    """Tell memory per GPU, samples, storage, hours and cost, all computed, and start nothing."""
    like: str | None = None
    """For --dry-run: run folder whose measured seconds per step the estimate takes."""
    tflops: float | None = None
    """For --dry-run: sustained TFLOP/s per GPU that the estimate assumes where no run is named."""
    gpu_memory_gb: float = 80.0
    """For --dry-run: memory of one GPU, GB."""
    gpu_hour_price: float | None = None
    """For --dry-run: price of a GPU-hour, in any currency."""
    profile: int = 0
    """Trace so many steps, a few after the start, into the run folder's profile/; as --log.profile."""
    config: Annotated[AvoidSubcommands[FlagConversionOff[RunConfig]], arg(name="")] = field(default=BASE)


Arguments.__doc__ = f"{Arguments.__doc__}\n\nWhat --train.evaluate may name, each with a number of steps:\n\n{lines()}"


def parse(words: Sequence[str], prog: str) -> Arguments:
    return with_preset(Arguments, words, prog, PRESETS, SHOWN, RunConfig)


def run(arguments: Arguments) -> int:
    config = arguments.config
    if arguments.profile:
        config = replace(config, log=replace(config.log, profile=arguments.profile))
    config.check()
    if arguments.dry_run:
        from jala_ray.training.estimate import report
        from jala_ray.training.setup import storage_options

        how = {"like": arguments.like, "tflops": arguments.tflops, "price": arguments.gpu_hour_price}
        print(report(config, storage_options(config), gpu_gb=arguments.gpu_memory_gb, **how))
        return 0
    if arguments.local:
        from jala_ray.training.local import run_local

        run_local(config)
        if importlib.util.find_spec("plotly") is None:  # a machine that only trains
            print("no report: plotly is not installed here; `jala report RUN` writes it elsewhere")
            return 0
    else:
        from jala_ray.training.launch import launch

        launch(config)
    from jala_ray.reports.run.publish import publish_pretrain_report, warnings_of
    from jala_ray.training import setup

    folder, options = setup.run_folder(config), setup.storage_options(config)
    print(f"report: {publish_pretrain_report(folder, config.data.manifest or None, options)}")
    for line in warnings_of(folder, options):
        print(line)
    return 0
