"""The older name of the commands of manifests: `python -m jala_ray.data convert ADAPTER ...`, `join`, `validate`, `inspect`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jala_ray.commands import shell

COMMANDS = ("convert", "join", "validate", "inspect")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for a manifest with problems, 2 for bad input."""
    return shell.main(sys.argv[1:] if arguments is None else arguments, COMMANDS, "python -m jala_ray.data")


if __name__ == "__main__":
    sys.exit(main())
