"""Speed, each with its baseline in the same run. `benchmarks/NAME.py` prints a table and, last, one JSON object."""

import jala_ray  # noqa: F401 - knows where the study lies, which once was here
