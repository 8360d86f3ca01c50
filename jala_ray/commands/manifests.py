"""Manifests: `python -m jala_ray.data convert ADAPTER --... OUT`, `... join A B OUT`, `... validate MANIFEST`, `... inspect MANIFEST`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Generic, Literal, TypeVar, get_args

import tyro

from jala_ray.data.adapters import ADAPTERS, Adapter
from jala_ray.data.adapters.base import with_packets
from jala_ray.data.manifest.examine import SOME_VIDEOS, Videos, examine
from jala_ray.data.manifest.set_aside import reasons
from jala_ray.data.manifest.table import Manifest, WriteReport, write_manifest
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


def command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jala_ray.data", description="Manifests.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("validate", help="check every row of a manifest, and its videos")
    check.add_argument("manifest", metavar="MANIFEST", help="a .parquet file or a folder of them")
    many = f"videos that are opened, each at the last frame that its rows need (default: some, up to {SOME_VIDEOS})"
    check.add_argument("--videos", choices=get_args(Videos), default="some", help=many)
    page = commands.add_parser("inspect", help="write a page that shows what a manifest holds")
    page.add_argument("manifest", metavar="MANIFEST", help="a .parquet file or a folder of them")
    page.add_argument(
        "--out", metavar="PAGE.html", help="default: beside the manifest; for s3://, in the working folder"
    )
    page.add_argument("--samples", type=int, default=24, help="clips on the contact sheet (default: 24)")
    page.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    join = commands.add_parser("join", help="join manifests into one")
    join.add_argument("manifests", metavar="MANIFEST", nargs="+", help="a .parquet file or a folder of them")
    join.add_argument("out", metavar="OUT", help="the joined manifest: a .parquet file, or a folder (local or s3://)")
    convert = commands.add_parser("convert", help="turn a source into a manifest")
    convert.add_argument("adapter", metavar="ADAPTER", choices=ADAPTERS, help=", ".join(ADAPTERS))
    convert.add_argument("rest", nargs=argparse.REMAINDER, metavar="--... OUT")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for a manifest with problems, 2 for bad input."""
    try:
        options = command_parser().parse_args(storage_flags(sys.argv[1:] if arguments is None else arguments)[1])
        if options.command == "validate":
            return _validate(options.manifest, options.videos)
        if options.command == "inspect":
            return _inspect(options.manifest, options.out, options.samples, options.seed)
        if options.command == "join":
            return _join(options.manifests, options.out)
        return _convert(options.adapter, options.rest)
    except JalaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _validate(path: str, videos: Videos) -> int:
    found = examine(Manifest(path), videos)
    for problem in found.problems[:SHOWN_PROBLEMS]:
        print(problem)
    if len(found.problems) > SHOWN_PROBLEMS:
        print(f"... and {len(found.problems) - SHOWN_PROBLEMS} more")
    for note in found.notes:
        print(f"note: {note}")
    rows = len({problem.row for problem in found.problems})
    print(f"{path}: {found.rows} rows, {rows} with problems; {found.opened} of {found.videos} videos opened")
    return 1 if found.problems else 0


def _join(manifests: Sequence[str], out: str) -> int:
    _report(write_manifest(chain.from_iterable(map(Manifest, manifests)), out))
    return 0


def _report(report: WriteReport) -> None:
    print(
        f"{report.path}: {report.rows} rows" + (", in place of the manifest that was there" if report.replaced else "")
    )


def _inspect(path: str, out: str | None, samples: int, seed: int) -> int:
    from jala_ray.reports.inspection.page import write_inspection

    print(write_inspection(path, out, samples=samples, seed=seed))
    return 0


def conversion(name: str, arguments: Sequence[str]) -> Convert[Adapter]:
    return tyro.cli(Convert[ADAPTERS[name]], args=arguments, prog=f"python -m jala_ray.data convert {name}")


def _convert(name: str, arguments: Sequence[str]) -> int:
    job = conversion(name, arguments)
    clips = with_packets(job.adapter.clips()) if job.packets else job.adapter.clips()
    report = write_manifest(clips, job.out, on_error=job.on_error, empty=False)
    _report(report)
    if report.errors_path:
        print(
            f"{report.quarantined} rows set aside, with reasons: {report.errors_path}",
            *reasons(report.errors_path),
            sep="\n  ",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
