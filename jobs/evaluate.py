"""Evaluate checkpoints on held-out clips: `ray job submit -- python jobs/evaluate.py OUT CHECKPOINT ...`, as `jala evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jala_ray.commands import evaluate, shell


def main(argv: Sequence[str]) -> int:
    return shell.script(evaluate, argv)


if __name__ == "__main__":
    sys.exit(shell.guarded(lambda: main(sys.argv[1:])))
