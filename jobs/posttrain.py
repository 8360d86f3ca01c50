"""Post-train a VLA on robots: `ray job submit -- python jobs/posttrain.py PRESET --dotted.key value`, the same as `jala posttrain`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jala_ray.commands import posttrain, shell


def main(argv: Sequence[str]) -> int:
    return shell.script(posttrain, argv)


if __name__ == "__main__":
    sys.exit(shell.guarded(lambda: main(sys.argv[1:])))
