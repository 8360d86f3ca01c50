"""What an address holds, and its recording."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jala_ray import storage
from jala_ray.data.robots.info import is_robot_set
from jala_ray.reports.view.recording import ViewWriter, Wanted, rerun
from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError

Held = Literal["episodes", "predictions", "rollouts", "clips"]


def held(address: str, options: StorageOptions | None = None) -> Held:
    """By the files that are there."""
    if address.endswith(".parquet"):
        return "clips"
    if is_robot_set(address, options):
        return "episodes"
    if storage.exists(storage.join(address, "rollouts.jsonl"), options):
        return "rollouts"
    if storage.exists(storage.join(address, "openloop.json"), options):
        return "predictions"
    if storage.exists(storage.join(address, "config.json"), options):
        remedy = "Compare it first: jala openloop OUT POLICY; then jala view OUT."
        raise ConfigError("what", address, "no run and no checkpoint", remedy)
    return "clips"


def write_view(
    address: str, out: str | None, wanted: Wanted, options: StorageOptions | None = None
) -> tuple[Path, Held]:
    """Write the recording to `out`, None: NAME.rrd in the working folder. Raises `ConfigError` without rerun, else as what is shown."""
    rerun()
    name = address.rstrip("/").rpartition("/")[2].removesuffix(".parquet")
    path = Path(storage.local_path(out)) if out is not None else Path(f"{name}.rrd")
    if path.suffix != ".rrd":
        raise ConfigError("out", out, "a file that ends in .rrd")
    kind = held(address, options)
    if kind == "rollouts" and storage.is_s3(address):
        raise ConfigError("what", address, "rollouts of a local folder", "Copy the folder here.")
    with ViewWriter(path, name) as writer:
        if kind == "episodes":
            from jala_ray.reports.view.episodes import write_episodes

            write_episodes(writer, address, wanted, options)
        elif kind == "predictions":
            from jala_ray.reports.view.predictions import write_predictions

            write_predictions(writer, address, wanted, options)
        elif kind == "rollouts":
            from jala_ray.reports.view.rollouts import write_rollouts

            write_rollouts(writer, storage.local_path(address), wanted)
        else:
            from jala_ray.reports.view.clips import write_clips

            write_clips(writer, address, wanted, options)
    return path, kind
