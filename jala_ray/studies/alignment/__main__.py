"""`python -m jala_ray.studies.alignment --out runs/study --size cpu --tier 1`, the same as `jala study alignment ...`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from jala_ray.parsing import arguments
from jala_ray.studies.alignment.asked import AlignmentStudy
from jala_ray.types import JalaError


def main(argv: Sequence[str]) -> None:
    arguments(AlignmentStudy, argv, "python -m jala_ray.studies.alignment").run()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        main(sys.argv[1:])
    except JalaError as error:
        sys.exit(f"error: {error}")
