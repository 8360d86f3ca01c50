"""`python -m jala_ray.data convert ADAPTER --... OUT`, `... validate MANIFEST` and `... inspect MANIFEST`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeVar

import tyro

from jala_ray.data.adapters import ADAPTERS, Adapter
from jala_ray.data.adapters.base import with_packets
from jala_ray.data.manifest import Manifest, validate, write_manifest
from jala_ray.storage.flags import storage_flags
from jala_ray.types import JalaError

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
    packets: bool = False
    """Index the packets of the boundary frames: reads all videos once, and training then never opens them as such."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for a manifest with problems, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m jala_ray.data", description="Manifests.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("validate", help="check every row of a manifest")
    check.add_argument("manifest", metavar="MANIFEST", help="a .parquet file or a folder of them")
    page = commands.add_parser("inspect", help="write a page that shows what a manifest holds")
    page.add_argument("manifest", metavar="MANIFEST", help="a .parquet file or a folder of them")
    page.add_argument(
        "--out", metavar="PAGE.html", help="default: beside the manifest; for s3://, in the working folder"
    )
    page.add_argument("--samples", type=int, default=24, help="clips on the contact sheet (default: 24)")
    page.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    convert = commands.add_parser("convert", help="turn a source into a manifest")
    convert.add_argument("adapter", metavar="ADAPTER", choices=ADAPTERS, help=", ".join(ADAPTERS))
    convert.add_argument("rest", nargs=argparse.REMAINDER, metavar="--... OUT")
    try:
        options = parser.parse_args(storage_flags(sys.argv[1:] if arguments is None else arguments)[1])
        if options.command == "validate":
            return _validate(options.manifest)
        if options.command == "inspect":
            return _inspect(options.manifest, options.out, options.samples, options.seed)
        return _convert(options.adapter, options.rest)
    except JalaError as error:
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


def _inspect(path: str, out: str | None, samples: int, seed: int) -> int:
    # Here, as the page is of the evaluation room, which imports this one.
    from jala_ray.evaluation.inspect import write_inspection

    print(write_inspection(path, out, samples=samples, seed=seed))
    return 0


def _convert(name: str, arguments: Sequence[str]) -> int:
    job = tyro.cli(Convert[ADAPTERS[name]], args=arguments, prog=f"python -m jala_ray.data convert {name}")
    clips = with_packets(job.adapter.clips()) if job.packets else job.adapter.clips()
    report = write_manifest(clips, job.out, on_error=job.on_error)
    print(f"{report.path}: {report.rows} rows")
    if report.quarantined:
        print(f"{report.quarantined} rows set aside, with reasons: {report.errors_path}")
    if not report.rows:
        print("error: no clip of the source is usable", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
