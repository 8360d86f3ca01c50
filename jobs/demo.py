"""`make demo`: synthetic hand videos -> motion tokenizer -> JALA checkpoint and report, the same as `jala demo`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jala_ray.commands import demo, shell  # noqa: E402


def main(argv: Sequence[str]) -> int:
    return shell.script(demo, ["--runs", str(ROOT / "runs"), *argv])


if __name__ == "__main__":
    sys.exit(shell.guarded(lambda: main(sys.argv[1:])))
