"""`python -m jala_ray.hands convert-mano IN.pkl OUT.npz` and `python -m jala_ray.hands make-asset`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jala_ray.hands.asset import write_assets
from jala_ray.hands.convert import convert_mano
from jala_ray.hands.mano import ASSETS
from jala_ray.storage import local_path
from jala_ray.types import HAND_NAMES, Hand, JalaError, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2 for bad input, which is one line on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m jala_ray.hands", description="Hand models as npz files.")
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert-mano", help="turn an official MANO pickle into an npz, safely")
    convert.add_argument("source", metavar="IN.pkl")
    convert.add_argument("target", metavar="OUT.npz", help="e.g. FOLDER/hand_right.npz")
    convert.add_argument("--side", choices=HAND_NAMES, help="default: LEFT or RIGHT in the file's name")
    convert.add_argument(
        "--fix-left-shape",
        action="store_true",
        help="negate x of the left hand's shape directions (a known error)",
    )
    make = commands.add_parser("make-asset", help="write the procedural hands again")
    make.add_argument("folder", nargs="?", default=ASSETS)
    options = parser.parse_args(arguments)
    try:
        make_asset = options.command == "make-asset"
        written = write_assets(Path(local_path(options.folder))) if make_asset else [_convert(options)]
    except JalaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"wrote {path} ({path.stat().st_size / 1024:.0f} KiB)")
    return 0


def _convert(options: argparse.Namespace) -> Path:
    source, target = Path(local_path(options.source)), Path(local_path(options.target))
    if target.suffix != ".npz":
        raise UserError("OUT.npz", str(target), "a path that ends in .npz")
    side = None if options.side is None else Hand(HAND_NAMES.index(options.side))
    arrays = convert_mano(source, side, fix_left_shape=options.fix_left_shape)
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target, allow_pickle=False, **arrays)
    return target


if __name__ == "__main__":
    sys.exit(main())
