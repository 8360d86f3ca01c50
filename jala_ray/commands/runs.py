"""List the runs under a folder: state, step, last loss, age."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.storage import StorageOptions


@dataclass(frozen=True)
class Arguments:
    """List the runs under a folder: finished, running (somebody holds the folder), stopped (the same command goes on), not begun."""

    root: Positional[Annotated[str, arg(metavar="ROOT")]] = "runs"
    """Folder or s3:// prefix, as --storage.root of the runs."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)


def run(arguments: Arguments) -> int:
    from jala_ray.storage import absolute
    from jala_ray.training.listing import list_runs

    found = list_runs(absolute(arguments.root), arguments.storage)
    if not found:
        print(f"{arguments.root}: no run (a folder with config.json)")
        return 0
    rows = [("run", "kind", "state", "step", "loss", "last sign of life", "")]
    for run in found:
        of = "" if run.steps is None else f"/{run.steps}"
        loss, age = "" if run.loss is None else f"{run.loss:.4g}", "" if run.age_s is None else f"{_age(run.age_s)} ago"
        rows.append((run.name, run.kind, run.state, f"{run.step}{of}", loss, age, run.holder))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
