"""Fit the teacher of grounded alignment, and show what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import AvoidSubcommands, FlagConversionOff, Positional, arg

from jala_ray.commands.presetting import known, with_preset
from jala_ray.config import RunConfig
from jala_ray.presets import PRESETS
from jala_ray.types import ConfigError

SHOWN = "grounded"
"""The preset whose settings `--help` shows where none is named."""
TAUGHT = {name: config for name, config in PRESETS.items() if config.objective.taught is not None}


@dataclass(frozen=True)
class Arguments:
    """Fit the inverse-dynamics teacher of a preset that has one, on the labelled clips of --data.cache or --data.manifest.

    Beside a cache it is kept: runs with the same labels, features and settings take it, and this command too.
    """

    preset: Positional[Annotated[str, arg(metavar="PRESET", help=known(TAUGHT))]]
    out: Positional[Annotated[str, arg(metavar="OUT")]]
    """Folder of the page (report.html), local or s3://, with the facts behind it: teacher.json, held_out.json."""
    config: Annotated[AvoidSubcommands[FlagConversionOff[RunConfig]], arg(name="")] = field(default=PRESETS[SHOWN])


def parse(words: Sequence[str], prog: str) -> Arguments:
    return with_preset(Arguments, words, prog, PRESETS, SHOWN, RunConfig)


def run(arguments: Arguments) -> int:
    config = arguments.config
    if config.objective.taught is None:
        remedy = f"Take one of {', '.join(TAUGHT)}."
        raise ConfigError("preset", arguments.preset, "a preset whose objective has a teacher", remedy)
    if not config.data.cache and not config.data.manifest:
        raise ConfigError("data.cache", config.data.cache, "an address", "Pass --data.cache or --data.manifest PATH.")
    if not config.motion_tokenizer:
        raise ConfigError("motion_tokenizer", "", "an address", "Pass --motion-tokenizer PATH.")
    from jala_ray import storage
    from jala_ray.training import setup
    from jala_ray.training.build import build_assets
    from jala_ray.training.teacher.keep import has_features, taught

    config = setup.absolute(config)
    config.check()
    options = setup.storage_options(config)
    with storage.in_environment(options), storage.scratch("teacher") as scratch:
        if config.data.cache and not has_features(config):
            remedy = "Make it with `jala cache ... --store features`, or leave --data.cache out to read a sample of the videos."
            raise ConfigError("data.cache", config.data.cache, "a cache with features", remedy)
        assets, address = build_assets(config, str(scratch)), str(scratch / "assets")
        assets.save(scratch / "assets")
        teacher = taught(config, assets, address)
        print(f"page: {_written(storage.absolute(arguments.out), config, address, teacher)}")
    return 0


def _written(out: str, config: RunConfig, address: str, teacher: object) -> str:
    """The address of the page."""
    import json

    from jala_ray import storage
    from jala_ray.models.inverse_dynamics import FACTS, HELD_OUT, Teacher
    from jala_ray.reports.teacher.page import PAGE, teacher_page, worst_rows
    from jala_ray.training import setup
    from jala_ray.training.teacher.keep import clips_of

    assert isinstance(teacher, Teacher)
    options, held_out = setup.storage_options(config), teacher.held_out
    clips = clips_of(config, address, worst_rows(held_out))
    lede = f"{config.data.cache or config.data.manifest} · {config.model.encoder.kind}"
    name = out.rstrip("/").rpartition("/")[2]
    content = teacher_page(name, teacher.report, held_out, clips, lede, options)
    for file, text in ((FACTS, json.dumps(teacher.facts(), indent=1)), (HELD_OUT, json.dumps(list(held_out)))):
        storage.write_bytes(storage.join(out, file), text.encode(), options)
    page = storage.join(out, PAGE)
    storage.write_bytes(page, content.encode(), options)
    return page
