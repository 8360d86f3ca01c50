"""`python -m jala_ray.data.synthetic OUT [--lab-train 32 --seed 1 ...]` makes a synthetic world."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.progress import Progress

from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.types import JalaError


@dataclass(frozen=True)
class Options:
    out: tyro.conf.Positional[Path]
    """Local folder for videos, manifest.parquet and world.json."""
    world: tyro.conf.OmitArgPrefixes[WorldConfig] = field(default_factory=WorldConfig)
    workers: int = 1
    """Processes that render."""
    overwrite: bool = False
    """Replace a world of another configuration."""


def main() -> None:
    options = tyro.cli(Options, prog="python -m jala_ray.data.synthetic")
    with Progress() as bar:
        task = bar.add_task("rendering", total=None)
        try:
            manifest = generate(
                options.out,
                options.world,
                workers=options.workers,
                overwrite=options.overwrite,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except JalaError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_status)
    print(manifest)


if __name__ == "__main__":
    main()
