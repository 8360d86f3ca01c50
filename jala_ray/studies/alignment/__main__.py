"""`python -m jala_ray.studies.alignment --out runs/study --size cpu --tier 1`, the same as `jala study alignment ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jala_ray.parsing import arguments
from jala_ray.studies.alignment.asked import AlignmentStudy
from jala_ray.training.interrupts import guarded


def main(argv: Sequence[str]) -> int:
    return arguments(AlignmentStudy, argv, "python -m jala_ray.studies.alignment").run()


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
