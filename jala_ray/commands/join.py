"""Join manifests into one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError


@dataclass(frozen=True)
class Arguments:
    """Join manifests into one: `jala join A B OUT`."""

    manifests: Positional[Annotated[tuple[str, ...], arg(metavar="MANIFEST ... OUT")]]
    """Two or more: the manifests (.parquet files or folders of them, local or s3://), and last the joined one, OUT."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)


def run(arguments: Arguments) -> int:
    from itertools import chain

    from jala_ray.data.manifest.table import Manifest, write_manifest

    if len(arguments.manifests) < 2:
        expected = "one or more manifests, and then OUT"
        raise ConfigError("manifests", list(arguments.manifests), expected, "Write it as jala join A B OUT.")
    *manifests, out = arguments.manifests
    print(write_manifest(chain.from_iterable(map(Manifest, manifests)), out).told())
    return 0
