"""Train the motion tokenizer: `ray job submit -- python jobs/train_tokenizer.py PRESET --manifests A.parquet`; `jala tokenizer`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jala_ray.commands import shell, tokenizer


def main(argv: Sequence[str]) -> int:
    return shell.script(tokenizer, argv)


if __name__ == "__main__":
    sys.exit(shell.guarded(lambda: main(sys.argv[1:])))
