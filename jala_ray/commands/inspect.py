"""Write a page that shows what a manifest, or a LeRobot data set, holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.storage import StorageOptions


@dataclass(frozen=True)
class Arguments:
    """Write a page that shows what a manifest holds: counts, motion, frames, warnings; or a LeRobot data set: signals, episodes, tasks,
    pictures of every camera, warnings."""

    manifest: Positional[Annotated[str, arg(metavar="MANIFEST")]]
    """A .parquet file or a folder of them, or the folder of a LeRobot data set; local or s3://."""
    out: str | None = None
    """The page (.html); None: beside the manifest, and for s3:// in the working folder."""
    samples: int = 24
    """Clips on the contact sheet; of a data set, pairs of an episode and a camera."""
    seed: int = 0
    """Of the choice of those clips or episodes."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)


def run(arguments: Arguments) -> int:
    from jala_ray.data.robots.info import is_robot_set

    given = arguments
    if is_robot_set(given.manifest):
        from jala_ray.reports.inspection.robot_page import write_robot_inspection

        print(write_robot_inspection(given.manifest, given.out, samples=given.samples, seed=given.seed))
        return 0
    from jala_ray.reports.inspection.page import write_inspection

    print(write_inspection(given.manifest, given.out, samples=given.samples, seed=given.seed))
    return 0
