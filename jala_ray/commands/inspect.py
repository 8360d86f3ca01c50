"""Write a page that shows what a manifest holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.storage import StorageOptions


@dataclass(frozen=True)
class Arguments:
    """Write a page that shows what a manifest holds: counts, motion, frames, warnings."""

    manifest: Positional[Annotated[str, arg(metavar="MANIFEST")]]
    """A .parquet file or a folder of them, local or s3://."""
    out: str | None = None
    """The page (.html); None: beside the manifest, and for s3:// in the working folder."""
    samples: int = 24
    """Clips on the contact sheet."""
    seed: int = 0
    """Of the choice of those clips."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)


def run(arguments: Arguments) -> int:
    from jala_ray.reports.inspection.page import write_inspection

    given = arguments
    print(write_inspection(given.manifest, given.out, samples=given.samples, seed=given.seed))
    return 0
