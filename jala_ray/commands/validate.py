"""Check every row of a manifest, and its videos."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.storage import StorageOptions

SHOWN_PROBLEMS = 50


@dataclass(frozen=True)
class Arguments:
    """Check every row of a manifest by the rules, and open its videos. Exit status 1 where there are problems."""

    manifest: Positional[Annotated[str, arg(metavar="MANIFEST")]]
    """A .parquet file or a folder of them, local or s3://."""
    videos: Literal["all", "some", "none"] = "some"
    """Videos that are opened, each at the last frame that its rows need; some: up to 100."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)


def run(arguments: Arguments) -> int:
    from jala_ray.data.manifest.examine import examine
    from jala_ray.data.manifest.table import Manifest
    from jala_ray.data.robots.info import is_robot_set
    from jala_ray.types import ManifestError

    if is_robot_set(arguments.manifest):
        remedy = "`jala inspect` looks at LeRobot data sets, and `jala pretrain --data.robot-sets` reads them in place."
        raise ManifestError("manifest", arguments.manifest, "a manifest, not a LeRobot data set", remedy)
    found = examine(Manifest(arguments.manifest), arguments.videos)
    for problem in found.problems[:SHOWN_PROBLEMS]:
        print(problem)
    if len(found.problems) > SHOWN_PROBLEMS:
        print(f"... and {len(found.problems) - SHOWN_PROBLEMS} more")
    for note in found.notes:
        print(f"note: {note}")
    for line in found.signals.lines():
        print(line)
    rows = len({problem.row for problem in found.problems})
    opened = f"{found.opened} of {found.videos} videos opened"
    print(f"{arguments.manifest}: {found.rows} rows, {rows} with problems; {opened}")
    return 1 if found.problems else 0
