"""Write the page of a run or of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.storage import StorageOptions


@dataclass(frozen=True)
class Arguments:
    """Write report.html of a run, of a model or of a motion tokenizer, into its folder; also while it runs.

    An evaluation's, or an open-loop comparison's, is written again from what its folder holds; no model is asked.
    """

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """The folder of the run, the evaluation or the comparison, local or s3://."""
    manifest: str | None = None
    """For a run's sample frames; None: the run's own, where it can be reached."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)


def run(arguments: Arguments) -> int:
    import json

    from jala_ray import storage
    from jala_ray.types import ConfigError

    folder, options = storage.absolute(arguments.run), arguments.storage
    place = storage.join(folder, "config.json")
    if storage.exists(storage.join(folder, "evaluation.json"), options):
        return _evaluation(folder, options)
    if storage.exists(storage.join(folder, "openloop.json"), options):
        return _openloop(folder, options)
    if not storage.exists(place, options):
        if storage.exists(storage.join(folder, "claim.json"), options):
            expected = "a finished evaluation, with evaluation.json, or comparison, with openloop.json"
            remedy = "Run `jala evaluate` or `jala openloop` again: it does only what is missing."
            raise ConfigError("run", arguments.run, expected, remedy)
        remedy = "`jala runs` lists runs; a sweep's page is written by its own command."
        raise ConfigError("run", arguments.run, "a run folder, with config.json, or an evaluation's", remedy)
    from jala_ray.reports.run.publish import publish_pretrain_report, publish_tokenizer_report, warnings_of

    config = json.loads(storage.read_bytes(place, options))
    tokenizer = "manifests" in config
    own = next(iter(config["manifests"]), "") if tokenizer else config.get("data", {}).get("manifest", "")
    manifest = arguments.manifest or (own if own and _reachable(own, options) else None)
    if tokenizer and manifest is None:
        raise ConfigError("manifest", own, "a manifest that can be reached", "Pass --manifest PATH.")
    publish = publish_tokenizer_report if tokenizer else publish_pretrain_report
    print(publish(folder, manifest, options))  # pyright: ignore[reportArgumentType]
    for line in warnings_of(folder, options):
        print(line)
    return 0


def _evaluation(folder: str, options: StorageOptions) -> int:
    from jala_ray.reports.motion.publish import republish, warnings_of

    print(republish(folder, options))
    for line in warnings_of(folder, options):
        print(line)
    return 0


def _openloop(folder: str, options: StorageOptions) -> int:
    from jala_ray.reports.openloop.publish import republish, warnings_of

    print(republish(folder, options))
    for line in warnings_of(folder, options):
        print(line)
    return 0


def _reachable(manifest: str, options: StorageOptions) -> bool:
    from jala_ray.data.manifest.table import Manifest
    from jala_ray.types import UserError

    try:
        Manifest(manifest, options)
    except UserError:
        return False
    return True
