"""Make a cache of a manifest: `ray job submit -- python jobs/cache.py PRESET OUT --dotted.key value`, the same as `jala cache`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jala_ray.commands import cache, shell


def main(argv: Sequence[str]) -> int:
    return shell.script(cache, argv)


if __name__ == "__main__":
    sys.exit(shell.guarded(lambda: main(sys.argv[1:])))
