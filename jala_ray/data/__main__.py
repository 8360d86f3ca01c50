"""`python -m jala_ray.data convert ADAPTER --... OUT` and `python -m jala_ray.data validate MANIFEST`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeVar

import tyro

from jala_ray.data.adapters import ADAPTERS, Adapter
from jala_ray.data.manifest import Manifest, validate, write_manifest
from jala_ray.types import UserError

A = TypeVar("A", bound=Adapter)
SHOWN_PROBLEMS = 50


@dataclass(frozen=True)
class Convert(Generic[A]):
    """Turn a source into a manifest."""

    adapter: Annotated[A, tyro.conf.arg(name="")]
    out: tyro.conf.Positional[str]
    """The manifest: a .parquet file, or a folder (local or s3://)."""
    on_error: Literal["quarantine", "raise"] = "quarantine"
    """Set bad rows aside in errors/ beside the manifest, or stop at the first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for a manifest with problems, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m jala_ray.data", description="Manifests.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("validate", help="check every row of a manifest")
    check.add_argument("manifest", metavar="MANIFEST", help="a .parquet file or a folder of them")
    convert = commands.add_parser("convert", help="turn a source into a manifest")
    convert.add_argument("adapter", metavar="ADAPTER", choices=ADAPTERS, help=", ".join(ADAPTERS))
    convert.add_argument("rest", nargs=argparse.REMAINDER, metavar="--... OUT")
    options = parser.parse_args(arguments)
    try:
        if options.command == "validate":
            return _validate(options.manifest)
        return _convert(options.adapter, options.rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _validate(path: str) -> int:
    problems = validate(path)
    for problem in problems[:SHOWN_PROBLEMS]:
        print(problem)
    if len(problems) > SHOWN_PROBLEMS:
        print(f"... and {len(problems) - SHOWN_PROBLEMS} more")
    rows = len({problem.row for problem in problems})
    print(f"{path}: {len(Manifest(path))} rows, {rows} with problems")
    return 1 if problems else 0


def _convert(name: str, arguments: Sequence[str]) -> int:
    job = tyro.cli(Convert[ADAPTERS[name]], args=arguments, prog=f"python -m jala_ray.data convert {name}")
    report = write_manifest(job.adapter.clips(), job.out, on_error=job.on_error)
    print(f"{report.path}: {report.rows} rows")
    if report.quarantined:
        print(f"{report.quarantined} rows set aside, with reasons: {report.errors_path}")
    if not report.rows:
        print("error: no clip of the source is usable", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
