"""Pretrain a VLA: `ray job submit -- python jobs/pretrain.py PRESET --dotted.key value`, the same as `jala pretrain`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jala_ray.commands import pretrain, shell


def main(argv: Sequence[str]) -> int:
    return shell.script(pretrain, argv)


if __name__ == "__main__":
    sys.exit(shell.guarded(lambda: main(sys.argv[1:])))
