"""Raw videos -> training clips: `ray job submit -- python jobs/prepare.py --folder VIDEOS --out OUT`, the same as `jala prepare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jala_ray.commands import prepare, shell


def main(argv: Sequence[str]) -> int:
    return shell.script(prepare, argv)


if __name__ == "__main__":
    sys.exit(shell.guarded(lambda: main(sys.argv[1:])))
