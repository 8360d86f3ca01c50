"""Search settings of a run: `ray job submit -- python tune/sweep.py PRESET --name my_sweep --dotted.key value`, as `jala sweep`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# Called by its path, a script has its own folder there alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jala_ray.commands import shell, sweep


def main(argv: Sequence[str]) -> int:
    return shell.script(sweep, argv)


if __name__ == "__main__":
    sys.exit(shell.guarded(lambda: main(sys.argv[1:])))
