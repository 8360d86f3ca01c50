"""Join manifests into one."""

from __future__ import annotations

from dataclasses import dataclass, field

from tyro.conf import FlagConversionOff, Positional

from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError

REPLACED = ", in place of the manifest that was there"


@dataclass(frozen=True)
class Arguments:
    """Join manifests into one: `jala join A B OUT`."""

    manifests: Positional[tuple[str, ...]]
    """Two or more: the manifests (.parquet files or folders of them, local or s3://), and last the joined one, OUT."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)


def run(arguments: Arguments) -> int:
    from itertools import chain

    from jala_ray.data.manifest.table import Manifest, write_manifest

    *manifests, out = arguments.manifests or ("",)
    if not manifests:
        raise ConfigError("manifests", list(arguments.manifests), "one or more, and then OUT", "jala join A B OUT")
    report = write_manifest(chain.from_iterable(map(Manifest, manifests)), out)
    print(f"{report.path}: {report.rows} rows{REPLACED if report.replaced else ''}")
    return 0
