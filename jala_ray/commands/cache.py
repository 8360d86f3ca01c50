"""Compute once what training reads of a manifest: motion codes, features, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import AvoidSubcommands, FlagConversionOff, Positional, arg

from jala_ray.commands.presetting import known, with_preset
from jala_ray.config import RunConfig
from jala_ray.presets import BASE, PRESETS
from jala_ray.types import ConfigError


@dataclass(frozen=True)
class Arguments:
    """Compute once what training reads of --data.manifest with --motion-tokenizer and the preset's encoder.

    The same command again makes only what is missing.
    """

    preset: Positional[Annotated[str, arg(metavar="PRESET", help=known(PRESETS))]]
    out: Positional[Annotated[str, arg(metavar="OUT")]]
    """Folder of the cache, local or s3://."""
    store: Literal["codes", "features", "all"] = "features"
    """Motion codes; the frozen encoder's features too; or all, the first pictures too: no video is needed then."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of the features."""
    part_rows: int = 256
    """Rows per task."""
    gpus_per_task: float = 0.0
    """GPUs that Ray keeps for each task, e.g. 0.25: four tasks share a GPU."""
    autoscaling: bool = False
    """The cluster grows on demand: GPUs that are not there yet are waited for."""
    local: bool = False
    """In this process, without Ray."""
    retry: bool = False
    """Make parts with rows that could not be read again."""
    config: Annotated[AvoidSubcommands[FlagConversionOff[RunConfig]], arg(name="")] = field(default=BASE)


def parse(words: Sequence[str], prog: str) -> Arguments:
    return with_preset(Arguments, words, prog, PRESETS, "jala", RunConfig)


def run(arguments: Arguments) -> int:
    config = arguments.config
    needed = {"data.manifest": config.data.manifest}
    needed |= {"motion_tokenizer": config.motion_tokenizer} if config.objective.tokenized else {}
    for name, address in needed.items():
        if not address:
            raise ConfigError(name, address, "an address", f"Pass --{name.replace('_', '-')} PATH.")
    from jala_ray import storage
    from jala_ray.data.cache.making import Contents, begin
    from jala_ray.data.manifest.table import Manifest
    from jala_ray.training import setup
    from jala_ray.training.build import build_assets
    from jala_ray.training.parts import TaskSize, do_parts

    config = setup.absolute(config)
    options = setup.storage_options(config)
    with storage.scratch("assets") as scratch:
        assets, manifest = build_assets(config, str(scratch)), Manifest(config.data.manifest, options)
        contents = Contents(arguments.store, arguments.dtype, arguments.part_rows)
        gpu = arguments.local or arguments.gpus_per_task > 0
        making = begin(arguments.out, manifest, assets, config.model.encoder, contents, options, gpu=gpu)
    if arguments.retry:
        making.drop_errors()
    size = TaskSize(gpus=arguments.gpus_per_task, autoscaling=arguments.autoscaling)
    do_parts(making.missing(), making.job, options, local=arguments.local, task=size)
    cache, errors = making.finish(config.data.max_error_share)
    print(f"{cache.path}: {cache.rows} rows, {len(errors)} left out" + (" (reasons: errors.jsonl)" if errors else ""))
    return 0
